"""Processes of the ladder's rungs. `hosting.py` has what they share."""
