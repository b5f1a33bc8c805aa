"""Keeps the garbage collector away from what lives as long as the process does."""

import gc


def settle() -> None:
    """Called once all is loaded. A full collection over Ray's, vLLM's and our modules stops every stream for 50 to 80 ms; after this
    it passes over them."""
    gc.collect()
    gc.freeze()
