"""Runs prepared requests on engines: reserves quota, opens token streams and reads them to their ends."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from neox_serve.gateway.dispatch.protocol import Engines, TokenStream
from neox_serve.gateway.requests.collecting import PromptCollector, StreamProgress
from neox_serve.gateway.requests.preparing import Prepared
from neox_serve.gateway.server.calls import Call

T = TypeVar("T")


class Completer:
    """Runs requests for one model."""

    def __init__(self, model: str, dispatcher: Engines) -> None:
        self._model = model
        self._dispatcher = dispatcher

    async def complete(self, call: Call, prepared: Sequence[Prepared], collectors: Sequence[PromptCollector]) -> None:
        """Runs all requests of a call concurrently, each into its collector. Raises the ServeError of the first that fails."""
        pairs = list(zip(prepared, collectors, strict=True))
        for prompt, collector in pairs:
            collector.progress.tokens = prompt.tokens
        await self.reserve(call, prepared)
        await side_by_side([self._collect(call, prompt, collector) for prompt, collector in pairs])

    async def reserve(self, call: Call, prepared: Sequence[Prepared]) -> None:
        """Reserves the maximum tokens that the call may use. Raises ServeError."""
        max_tokens = sum(len(prompt.request.prompt_token_ids) + prompt.request.max_output_tokens for prompt in prepared)
        call.accounting.reservation = await self._dispatcher.reserve(call.tenant, max_tokens)

    async def open(self, call: Call, prepared: Prepared) -> TokenStream:
        """Opens the token stream of a request, which must be read to its end or cancelled. Raises ServeError."""
        terms = call.terms(asyncio.get_running_loop().time())
        request = replace(prepared.request, traceparent=terms.traceparent) if terms.traceparent else prepared.request
        return await self._dispatcher.open_generation(self._model, request, terms)

    async def _collect(self, call: Call, prepared: Prepared, collector: PromptCollector) -> None:
        """Reads the stream of one request to its end. Cancels it if anything fails, so that the engine is free."""
        stream = await self.open(call, prepared)
        clock = asyncio.get_running_loop().time
        try:
            call.progress.admitted(stream.admission_s, stream.replica_id, stream.explanation)
            while not collector.progress.ended:
                if collector.take(await stream.next()):
                    call.progress.tokens_arrived(clock())
        finally:
            stream.cancel()
            call.progress.gaps_s += stream.gaps_s
            note_prediction(call, stream, collector.progress)


def note_prediction(call: Call, stream: TokenStream, progress: StreamProgress) -> None:
    """Records the cached tokens that the router predicted and those that the engine found. Skips streams that changed replicas."""
    if progress.prompt_facts_received and stream.predicted_cached_tokens is not None and not stream.gaps_s:
        call.accounting.predictions.append((stream.predicted_cached_tokens, progress.tokens.cached))


async def side_by_side(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs coroutines concurrently and returns their results in order. The first failure cancels the others and is raised."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
