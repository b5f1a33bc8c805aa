"""InferenceService.Score: how likely continuations are, from the prompt log-probabilities of engines."""

import asyncio
from collections.abc import Sequence

from neox_serve.core.errors import Reason, ServeError, invalid
from neox_serve.core.types import GenerationRequest, ModelLimits, Sampling, Stopping, TokenIds
from neox_serve.gateway.dispatch.protocol import Dispatcher
from neox_serve.gateway.requests import prompts, validation
from neox_serve.gateway.requests.collecting import PromptCollector
from neox_serve.gateway.requests.completing import Completer
from neox_serve.gateway.requests.preparing import Prepared, Salts
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.server.calls import Call, TokenCount
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.v1 import inference_service_pb2 as pb
from neox_serve.wire.public_messages import token_logprob_message

Pair = tuple[TokenIds, TokenIds]
"""Token ids of a context and its continuation."""


class Scoring:
    """Implements the RPC."""

    def __init__(self, *, served: Served, tokenizer: Tokenizer, dispatcher: Dispatcher, salts: Salts) -> None:
        self._served = served
        self._salts = salts
        self._tokenizer = tokenizer
        self._completer = Completer(served.model, dispatcher)

    async def score(self, call: Call, message: pb.ScoreRequest) -> pb.ScoreResponse:
        """Scores all items concurrently. Raises the ServeError of the first item that fails, and cancels the others."""
        call.accounting.model = self._served.model
        limits = validation.check_score(message, self._served.seen_by(call.tenant))
        pairs = await self._pairs(call, message)
        collectors = [PromptCollector(1) for _ in pairs]
        try:
            await self._completer.complete(call, self._prepared(call, message, pairs, limits), collectors)
        finally:
            call.accounting.tokens = TokenCount()
            for collector in collectors:
                call.accounting.tokens.add(collector.progress.tokens)
        return pb.ScoreResponse(
            request_id=call.request_id,
            model=self._served.model,
            scores=[_score(continuation, collector) for (_, continuation), collector in zip(pairs, collectors, strict=True)],
            usage=call.accounting.tokens.message(),
            timings=call.timings(asyncio.get_running_loop().time()),
        )

    async def _pairs(self, call: Call, message: pb.ScoreRequest) -> list[Pair]:
        clock = asyncio.get_running_loop().time
        began_s = clock()
        pairs = [await self._pair(item, f"items[{index}]") for index, item in enumerate(message.items)]
        call.progress.tokenization_s = clock() - began_s
        return pairs

    async def _pair(self, item: pb.ScoreItem, path: str) -> Pair:
        encode, end_of_text = self._tokenizer.encode_aside, (self._served.end_of_text_id,)
        if "token_ids" in (item.context.WhichOneof("content"), item.continuation.WhichOneof("content")):
            context = tuple(item.context.token_ids.ids) or await encode(item.context.text)
            continuation = tuple(item.continuation.token_ids.ids) or await encode(item.continuation.text)
        else:
            before, after = move_trailing_spaces(item.context.text, item.continuation.text)
            context = await encode(before)
            continuation = (await encode(before + after))[len(context) :]
        if not continuation:
            raise invalid(f"{path}.continuation", "got no tokens, must have at least one")
        return context or end_of_text, continuation

    def _prepared(self, call: Call, message: pb.ScoreRequest, pairs: Sequence[Pair], limits: ModelLimits) -> list[Prepared]:
        explanation = f"the context of {limits.max_model_len} tokens and one generated token"
        room, prepared = prompts.Room(limits.max_model_len - 1, explanation, message.truncation), []
        for index, (context, continuation) in enumerate(pairs):
            ids, truncated = prompts.fit_pair(context, continuation, f"items[{index}]", room)
            request = GenerationRequest(
                request_id=f"{call.request_id}#{index}",
                prompt_token_ids=ids,
                stopping=Stopping(max_tokens=1, ignore_eos=True),
                sampling=Sampling(temperature=0.0),
                prompt_logprobs=0,
                adapter=message.adapter or None,
                cache_salt=self._salts(call.tenant),
                session=call.identity.routing_session,
            )
            prepared.append(Prepared(request, TokenCount(prompt=len(ids), truncated=truncated)))
        return prepared


def move_trailing_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Moves spaces from the end of the context to the start of the continuation, because tokens begin with their spaces.

    Source: lm-evaluation-harness, TemplateLM._encode_pair.
    """
    before = context.rstrip()
    return before, context[len(before) :] + continuation


def _score(continuation: TokenIds, collector: PromptCollector) -> pb.Score:
    tokens = [position.token for position in collector.progress.prompt_logprobs[-len(continuation) :]]
    if tuple(token.token_id for token in tokens) != continuation:
        raise ServeError(Reason.INTERNAL, "the engine returned log-probabilities of other tokens than requested")
    return pb.Score(
        log_likelihood=sum(token.logprob for token in tokens),
        is_greedy=all(token.rank == 1 for token in tokens),
        tokens=[token_logprob_message(token) for token in tokens],
    )
