"""Fine-tuning as a batch job: examples in, a LoRA adapter in the registry out.

`run` describes a run, without torch; `examples` reads the input, `packing` lays the examples into sequences, `training` is
the loop, `checkpoint` lets it go on after its death, `workers` has several processes train together, `adapter` is what is published.
"""
