"""Ray Serve classes and the entry points of Ray jobs: thin shells around objects of neox_serve.

The package may import neox_serve, autoscaling and Ray. Start reading in app.py, which composes a cluster.
"""
