"""What `neox-serve bench` does: checks its options, plans the load and runs the load generator of `neox_serve.loadgen`.

Start reading at plan.py; run.py runs the plan and plot.py draws the result.
"""
