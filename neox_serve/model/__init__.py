"""What is known of a model without loading it: checkpoint files, tokenizer, chat template, adapters, memory and step times.

Imports the core and the settings, never an engine. Start with `model_files`.
"""
