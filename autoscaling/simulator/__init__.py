"""A cluster in simulated time, to try scaling policies at sizes and speeds that no test cluster has. May use numpy and neox_serve.core."""
