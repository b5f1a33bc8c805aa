"""Runs a beam search on an engine that returns the most likely next tokens of a text."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vllm.outputs import RequestOutput

from neox_serve.core.errors import Reason, ServeError, invalid
from neox_serve.core.generation.beam_search import BeamSearch, Hypothesis
from neox_serve.core.types import Beam, FinishReason, GenerationRequest, PositionLogprobs, PromptFacts, SequenceDelta, TokenIds
from neox_serve.engine.detokenizer import TextStream, TokenTable
from neox_serve.engine.vllm.requests import positions

Step = Callable[[TokenIds, int], Awaitable[RequestOutput]]
"""Generates one token after the given ones. The second argument is the number of most likely tokens to return."""


@dataclass(frozen=True, slots=True)
class BeamSearchResult:
    """The result of a beam search."""

    sequences: tuple[SequenceDelta, ...]
    prompt: PromptFacts


def check(request: GenerationRequest) -> None:
    """Raises INVALID_ARGUMENT for parameters that a beam search does not support."""
    if request.structured_output is not None:
        raise invalid("parameters.structured_output", "is not supported with beam search")
    if request.stopping.stop_sequences:
        raise invalid("parameters.stopping.stop_sequences", "are not supported with beam search; use stop_token_ids")
    if request.prompt_logprobs is not None:
        raise invalid("parameters.prompt_logprobs", "are not supported with beam search")


async def run(request: GenerationRequest, beam: Beam, table: TokenTable, eos_token_id: int, step: Step) -> BeamSearchResult:
    """Returns the best sequences of a request. Raises what `step` raises. Cancelling the call cancels its steps."""
    search = BeamSearch(beam, request.stopping, eos_token_id, len(request.prompt_token_ids))
    cached_tokens: int | None = None
    while not search.done:
        outputs = await _step_all(request, search, step)
        if cached_tokens is None:
            cached_tokens = outputs[0].num_cached_tokens or 0
        search = search.advance([_candidates(output, search.candidates_per_beam, table) for output in outputs])
    found = tuple(_sequence_delta(index, hypothesis, search, request, table) for index, hypothesis in enumerate(search.best()))
    return BeamSearchResult(found, PromptFacts(cached_tokens or 0))


async def _step_all(request: GenerationRequest, search: BeamSearch, step: Step) -> list[RequestOutput]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_one(step, (*request.prompt_token_ids, *hypothesis.token_ids), search.candidates_per_beam))
                for hypothesis in search.active
            ]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return [task.result() for task in tasks]


async def _one(step: Step, token_ids: TokenIds, candidates: int) -> RequestOutput:
    output = await step(token_ids, candidates)
    if output.outputs[0].finish_reason in {"error", "abort"}:
        raise ServeError(Reason.ENGINE_FAILED, f"vLLM ended a beam with {output.outputs[0].finish_reason!r}")
    return output


def _candidates(output: RequestOutput, count: int, table: TokenTable) -> list[PositionLogprobs]:
    """Returns the most likely next tokens, each as the chosen token of its position, all with the same alternatives."""
    (position,) = positions(output.outputs[0].logprobs, count, table.display)
    return [PositionLogprobs(token, position.alternatives) for token in position.alternatives]


def _sequence_delta(index: int, hypothesis: Hypothesis, search: BeamSearch, request: GenerationRequest, table: TokenTable) -> SequenceDelta:
    finish = hypothesis.finish
    hidden = finish is not None and finish.reason is FinishReason.STOP and not request.stopping.include_stop_in_output
    text = TextStream(table.text_bytes, request.stopping, request.prompt_token_ids).push(hypothesis.token_ids, hide_last=hidden).text
    logprobs = () if request.logprobs is None else tuple(_cut(position, request.logprobs) for position in hypothesis.logprobs)
    return SequenceDelta(index, text, hypothesis.token_ids, logprobs, finish, search.score(hypothesis))


def _cut(position: PositionLogprobs, alternatives: int) -> PositionLogprobs:
    return PositionLogprobs(position.token, position.alternatives[:alternatives])
