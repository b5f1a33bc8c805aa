"""Engines: what runs a model. vllm and torch are imported only below this package, and only by `vllm_*` modules."""
