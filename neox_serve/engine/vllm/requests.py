"""Translates requests into vLLM's parameters, and vLLM's log-probabilities into ours."""

import re
from collections.abc import Callable, Mapping

from vllm.logprobs import Logprob
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Choice, GenerationRequest, JsonSchema, PositionLogprobs, Regex, StructuredOutput, TokenLogprob
from neox_serve.engine import structured_outputs

Display = Callable[[int], str]

_COMPILER_PREFIX = re.compile(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: ")
"""The beginning of a grammar compiler's message, for example "[03:02:59] /project/cpp/regex_converter.cc:83: "."""


def sampling_params(request: GenerationRequest, index: int) -> SamplingParams:
    """Returns the parameters of one of a request's n sequences.

    Each sequence is a separate vLLM request. Equal seeds would give equal texts, so sequence i uses seed + i. Only the first sequence
    computes the prompt's log-probabilities. `TextStream` handles text and stop sequences, so vLLM does not detokenize, and a request with
    stop sequences gets every token at once instead of several per delta.
    """
    sampling, stopping = request.sampling, request.stopping
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=None if sampling.seed is None else sampling.seed + index,
        logit_bias=dict(sampling.logit_bias) or None,
        max_tokens=stopping.max_tokens,
        min_tokens=stopping.min_tokens,
        stop_token_ids=list(stopping.stop_token_ids),
        ignore_eos=stopping.ignore_eos,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs if index == 0 else None,
        structured_outputs=None if request.structured_output is None else _structured(request.structured_output),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        stream_interval=request.tokens_per_delta if not stopping.stop_sequences else None,
        skip_clone=True,
    )


def beam_step_params(candidates: int) -> SamplingParams:
    """Returns parameters that generate one token and the log-probabilities of the most likely ones."""
    return SamplingParams(temperature=0.0, max_tokens=1, logprobs=candidates, detokenize=False, output_kind=RequestOutputKind.DELTA)


def pooling_params(*, per_token: bool) -> PoolingParams:
    """Returns parameters for one vector per input, or one per token. vLLM does not normalize; `pooling.result` does."""
    return PoolingParams(task="token_embed" if per_token else "embed", use_activation=False)


def positions(entries: list[Mapping[int, Logprob] | None] | None, alternatives: int, display: Display) -> tuple[PositionLogprobs, ...]:
    """Translates vLLM's log-probabilities, one mapping per position with the chosen token first. Positions without any are omitted."""
    return tuple(_position(entry, alternatives, display) for entry in entries or () if entry)


def explain_structured_output(structured_output: StructuredOutput, error: ServeError) -> ServeError:
    """An error about a structured-output request, as one about its field if the engine refused it."""
    if error.reason is not Reason.INVALID_ARGUMENT:
        return error
    return structured_outputs.refusal(structured_output, f"cannot be followed: {_COMPILER_PREFIX.sub('', error.message).strip()}")


def _position(entry: Mapping[int, Logprob], alternatives: int, display: Display) -> PositionLogprobs:
    tokens = [TokenLogprob(token_id, found.logprob, found.rank or 0, display(token_id)) for token_id, found in entry.items()]
    ranked = sorted((token for token in tokens if token.rank <= alternatives), key=lambda token: token.rank)
    return PositionLogprobs(tokens[0], tuple(ranked))


def _structured(structured_output: StructuredOutput) -> StructuredOutputsParams:
    match structured_output:
        case JsonSchema(schema):
            return StructuredOutputsParams(json=schema)
        case Regex(pattern):
            return StructuredOutputsParams(regex=pattern)
        case Choice(texts):
            return StructuredOutputsParams(choice=list(texts))
