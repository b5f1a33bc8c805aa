"""The training data of the built-in model: where texts come from, which are kept, which are held out, and how they become sequences.

It imports no part of the training itself. Start with `sources`, then `corpus`.
"""
