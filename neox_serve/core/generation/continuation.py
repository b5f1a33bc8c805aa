"""Going on with a stream on another replica, from its prompt and the tokens that its reader has already.

The next token of a plain request depends on the tokens before it alone, so a new replica that is given them goes on as the old one would
have: greedily with the same tokens, sampled with tokens of the same distribution. It is not sound where more than the tokens counts:
a seed's random numbers have been drawn in part; penalties tell prompt and output apart; a structured output or a stop sequence may be half
matched; beams, further sequences and log-probabilities have state or output of their own.
"""

from collections.abc import Sequence
from dataclasses import replace

from neox_serve.core.types import GenerationRequest

MAX_CONTINUATIONS = 3
"""A request that takes down every replica it comes to must not take them all."""


def is_continuable(request: GenerationRequest) -> bool:
    """Whether another replica can go on with the request after some of its output was delivered."""
    sampling = request.sampling
    has_penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) != (1.0, 0.0, 0.0)
    is_plain = request.structured_output is None and request.beam is None and request.n == 1
    wants_more_than_text = request.logprobs is not None or request.prompt_logprobs is not None
    has_seed = sampling.seed is not None and sampling.temperature > 0
    return is_plain and not (has_penalties or wants_more_than_text or has_seed or request.stopping.stop_sequences)


def continued(request: GenerationRequest, delivered: Sequence[int]) -> GenerationRequest | None:
    """What is still to be done; None where all tokens that it may have were delivered."""
    left = request.stopping.max_tokens - len(delivered)
    if left <= 0:
        return None
    stopping = replace(request.stopping, max_tokens=left, min_tokens=max(0, request.stopping.min_tokens - len(delivered)))
    return replace(request, prompt_token_ids=(*request.prompt_token_ids, *delivered), stopping=stopping)
