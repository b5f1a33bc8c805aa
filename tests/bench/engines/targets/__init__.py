"""Targets that only the benches drive."""
