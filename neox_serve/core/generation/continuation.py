"""Continuing a stream on another replica, from its prompt and the tokens that the reader already has.

The next token of a plain request depends only on the tokens before it. A new replica that receives them continues as the old one would
have: with greedy decoding the tokens are the same, with sampling they follow the same distribution. This does not hold if the engine keeps
more state than the tokens: part of a seed's random numbers has been drawn, penalties distinguish prompt and output, structured output or a
stop sequence may be matched halfway, and beams, several sequences and log-probabilities have state or output of their own.
"""

from collections.abc import Sequence
from dataclasses import replace

from neox_serve.core.types import GenerationRequest

MAX_CONTINUATIONS = 3
"""Limits the damage of a request that crashes every replica it reaches."""


def is_continuable(request: GenerationRequest) -> bool:
    """Returns whether another replica can continue the request after some of its output was delivered."""
    sampling = request.sampling
    has_penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (1.0, 0.0, 0.0)
    is_plain = request.structured_output is None and request.beam is None and request.n == 1
    wants_more_than_text = request.logprobs is not None or request.prompt_logprobs is not None
    has_seed = sampling.seed is not None and sampling.temperature > 0
    return is_plain and not (has_penalties or wants_more_than_text or has_seed or request.stopping.stop_sequences)


def continued(request: GenerationRequest, delivered: Sequence[int]) -> GenerationRequest | None:
    """Returns the request for the remaining tokens, or None if `max_tokens` tokens were already delivered."""
    left = request.stopping.max_tokens - len(delivered)
    if left <= 0:
        return None
    stopping = replace(request.stopping, max_tokens=left, min_tokens=max(0, request.stopping.min_tokens - len(delivered)))
    return replace(request, prompt_token_ids=(*request.prompt_token_ids, *delivered), stopping=stopping)
