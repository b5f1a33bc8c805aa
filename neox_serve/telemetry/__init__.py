"""Logs and traces, which all processes write in the same form.

The package may import core and settings. Start reading in logs.py, which says how log events are named, then tracing.py.
"""
