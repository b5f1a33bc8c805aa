"""Comparisons of neox-serve with other serving systems on real and fake engines. `systems.py` starts the systems."""
