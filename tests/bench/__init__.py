"""Benchmarks of the whole system against what users would pick instead. How to run and read them: docs/operator/benchmarks.md."""
