"""The engine on vLLM. Apart from jobs and tools, only this package may import vLLM and torch.

It may import core, model, settings and the engine package's common modules. Start reading in start.py, then engine.py.
"""
