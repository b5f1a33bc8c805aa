"""Benchmarks of abnormal situations: abandoned requests, overload, and rolling updates under load."""
