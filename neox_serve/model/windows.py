"""Sliding windows over a text that is longer than the model's context, for measuring its likelihood."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a token stream that is evaluated in one forward pass. All fields are indices of the stream."""

    start: int
    """First token of the window."""
    end: int
    """First token after the window."""
    scored_from: int
    """First token that is scored. The tokens before it are only context."""


def sliding_windows(length: int, context: int, stride: int) -> Iterator[Window]:
    """Yield windows that score every token of a stream of `length` tokens exactly once, except for the first token.

    A window holds at most `context` tokens and advances by `stride`, so every later token is predicted from at least `context - stride`
    tokens. Source: https://huggingface.co/docs/transformers/perplexity.
    """
    scored_from = 1
    while scored_from < length:
        end = context if scored_from == 1 else scored_from + stride
        end = min(end, length)
        yield Window(max(end - context, 0), end, scored_from)
        scored_from = end
