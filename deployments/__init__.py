"""Ray Serve classes and the entry points of Ray jobs: thin shells around objects of neox_serve."""
