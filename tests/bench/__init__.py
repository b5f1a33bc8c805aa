"""Benchmarks of neox-serve, mostly in comparison with the systems that users could choose instead.

The modules here hold what all benchmarks share, and each subfolder holds the benchmarks of one subject. They may import every package of
the repository. Start reading at `__main__.py` (the comparisons) and `goals.py` (the goals). docs/operator/benchmarks.md explains how to run
them.
"""
