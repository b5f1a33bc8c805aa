"""Sizing of replica pools: signals in, replica counts out. Standard library only, so that Ray's controller can run it anywhere."""
