"""The work of `neox-serve bench`: which endpoint to measure, what to send, and how to run, summarize and plot it.

It drives `neox_serve.loadgen` and may import nothing that serves. Start with `plan`, which turns the options into workloads.
"""
