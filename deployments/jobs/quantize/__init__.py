"""Quantising: a checkpoint in, a smaller one out, in compressed-tensors' form, which vLLM serves on GPUs and CPUs.

`schemes` says what is stored of a weight and how, `gptq` rounds weights against calibration text, `calibration` walks through the layers,
`checkpoint` writes the result, `__main__` runs it and says what it cost in quality.
"""
