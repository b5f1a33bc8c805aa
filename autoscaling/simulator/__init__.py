"""A simulated cluster, to compare scaling policies at sizes and speeds that no test cluster has.

It may import numpy, `autoscaling`, `neox_serve.core` and `neox_serve.model`. Start reading at `cluster.py`, which runs one simulation, then
`comparison.py`, which compares policies by what attainment costs them.
"""
