"""Benchmark of how cost grows with streams, gateways, replicas, prompt length, and the number of replicas that the router chooses from."""
