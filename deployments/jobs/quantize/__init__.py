"""Quantising: a checkpoint in, a smaller one out, in compressed-tensors' form, which vLLM serves on GPUs and CPUs.

One layer is in memory at a time. `checkpoint` reads tensors and writes shards, `one_layer` is the model with the layer that is looked at,
`walk` goes through them all, `gptq` rounds weights against calibration text, `schemes` says what is stored of a weight and how, `texts` is
what the walk reads, `serving` compares engines of both checkpoints, `__main__` runs it all.
"""
