"""Runs a cluster on this machine, or on a Ray cluster that it is part of: start, apply changes, stop.

It may import deployments, neox_serve and Ray. Start reading in cluster.py.
"""
