"""The `neox-serve` command: plans GPUs, renders manifests, runs a cluster on this machine and measures it.

It may import everything. Start reading at cli.py, which adds the commands of `commands` to those of `neox_serve.cli`.
"""
