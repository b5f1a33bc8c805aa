"""Planning, manifests, local start and stop, job submission, and the `neox-serve` command."""
