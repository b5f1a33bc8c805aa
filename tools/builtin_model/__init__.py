"""A developer's tool that trains the built-in GPT-NeoX model: corpus, tokenizer, training, export, evaluation.

It recreates the checkpoint in `neox_serve/builtin_model/` from public text with one command and is not part of a cluster. It may import
torch and transformers, but nothing from the other packages. Start reading at `__main__.py` (the commands), then `pipeline.py` (their
files).
"""
