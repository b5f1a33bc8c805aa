"""Benchmarks of the router: its core, its process with its links, its memory, and its routing policies."""
