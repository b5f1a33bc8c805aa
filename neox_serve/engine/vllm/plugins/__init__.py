"""Plugins that vLLM loads in every process of an engine through its entry points: a kernel for 4-bit weights and a model class.

The modules named in the entry points (int4.py and layers.py) import neither vLLM nor torch at import time.
"""
