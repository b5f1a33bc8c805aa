"""Fine-tuning: examples in, a LoRA adapter in the registry out.

May import torch, peft, transformers and (in `workers`) Ray. Start with `run` (the description) and `__main__`; `examples` reads the input,
`packing` packs examples into sequences, `training` is the loop, `checkpoint` lets a run continue after a crash, `workers` lets several
processes train together, and `adapter` publishes the result.
"""
