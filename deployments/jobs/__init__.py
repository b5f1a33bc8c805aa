"""Entry points of batch jobs, and the controller that runs them: bulk, fine-tuning, evaluation and quantization.

May import `neox_serve`, torch, vLLM and Ray; nothing in `neox_serve` imports it. Each kind is a package with a `run` module (the
description of a run, without heavy imports) and a `__main__` module (the process that does it).

Start with `controller` for how jobs are started and followed, and with `bulk` for a kind.
"""
