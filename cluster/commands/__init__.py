"""The commands of `neox-serve`. Modules here import what is slow to load inside their functions, so that help and completion stay quick."""
