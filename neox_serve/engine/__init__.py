"""Engines, which run the model: the `Engine` protocol, its vLLM implementation (`vllm`) and a fake one without a model (`fake`).

Only `vllm` may import vLLM and torch. The package may import core, model and settings. Start reading in protocol.py, then factory.py.
"""
