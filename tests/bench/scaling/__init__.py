"""Benchmarks of scaling policies, of the simulator and of the planner. `goals.py` lists their goals."""
