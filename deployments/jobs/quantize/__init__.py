"""Quantization: a checkpoint in, a smaller one out, in the format of compressed-tensors, which vLLM serves on GPUs and CPUs.

May import torch and transformers; an engine only runs in a process of its own (`serving`). Start with `run` (the description), `__main__`
and `walk`, which goes through the checkpoint layer by layer, so that only one layer is in memory at a time. `checkpoint` reads tensors and
writes shards, `one_layer` is the model with the current layer, `gptq` rounds weights against calibration text, `schemes` defines what is
stored of a weight, and `texts` is what the walk reads.
"""
