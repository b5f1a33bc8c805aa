"""Trains the built-in GPT-NeoX model: corpus, tokenizer, training, export, evaluation.

Exists so that the checkpoint in `neox_serve/builtin_model/` can be made again from public text by one command.
"""
