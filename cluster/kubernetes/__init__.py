"""Kubernetes manifests for `neox-serve manifests render`.

It may import `deployments` (for the Serve configuration) and `neox_serve`. Start reading at `manifests.render`.
"""
