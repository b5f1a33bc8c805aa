"""Targets of the load generator that only the benchmarks use."""
