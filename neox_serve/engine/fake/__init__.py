"""The fake engine: real timing and made-up tokens, without a model. Tests, benchmarks and simulations use it.

It may import core and the engine package's common modules. Start reading in engine.py.
"""
