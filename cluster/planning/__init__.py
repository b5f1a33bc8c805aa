"""Capacity planning without hardware: `plan.py` finds GPUs and layouts for a load, `simulation_plan.py` prepares `neox-serve simulate`.

It may import `autoscaling`, `neox_serve.core` and `neox_serve.model`, but neither Ray nor vLLM. Start reading at `plan.py`.
"""
