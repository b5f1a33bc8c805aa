"""From a generation message to engine requests: validation, tokenization and truncation to the context."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from neox_serve.core.tenancy.tenants import PriorityClass, Tenant
from neox_serve.core.types import GenerationRequest, ModelLimits
from neox_serve.gateway.requests import prompts, validation
from neox_serve.gateway.requests.chats import Chats
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.requests.structured_outputs import is_quick
from neox_serve.gateway.server.calls import Call, TokenCount
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.v1 import generation_pb2, inference_service_pb2
from neox_serve.wire.public_messages import generation_request

UnaryRequest = inference_service_pb2.GenerateRequest | inference_service_pb2.EstimateRequest
_M = TypeVar("_M", bound=UnaryRequest | inference_service_pb2.StreamGenerateRequest)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The engine request of one prompt."""

    request: GenerationRequest
    """The request."""
    tokens: TokenCount
    """Prompt and truncated tokens; the engine's output adds the others."""


UNREAD_TOKENS_PER_DELTA = 32
"""Tokens in each delta of unary BULK calls. No one reads along, so the time to each token does not matter."""

Salts = Callable[[Tenant], str | None]
"""Returns the cache salt of a tenant, or None if the cluster does not separate tenants."""


def unsalted(_tenant: Tenant) -> None:
    """Returns no salt: for clusters with one tenant, and for requests that no engine sees."""


class Preparer:
    """Prepares generation calls."""

    def __init__(self, served: Served, tokenizer: Tokenizer, salts: Salts = unsalted) -> None:
        self._served = served
        self._salts = salts
        self._tokenizer = tokenizer
        self._chats = Chats(served, tokenizer)

    async def check_unary(self, call: Call, message: UnaryRequest) -> ModelLimits:
        """Validates the message and returns the limits of the model. Raises ServeError."""
        return await self._checked(validation.check_generate, call, message)

    async def check_stream(self, call: Call, message: inference_service_pb2.StreamGenerateRequest) -> ModelLimits:
        """Validates the message and returns the limits of the model. Raises ServeError."""
        return await self._checked(validation.check_stream_generate, call, message)

    async def unary(self, call: Call, message: UnaryRequest, limits: ModelLimits) -> list[Prepared]:
        """Returns one request for each prompt of a validated message. Raises ServeError."""
        beam = message.beam_search if message.HasField("beam_search") else None
        prepared = await self._requests(call, message, message.prompts, "prompts[{}]", limits, beam)
        if (
            call.identity.priority is not PriorityClass.BULK
            or message.parameters.on_deadline == generation_pb2.DEADLINE_BEHAVIOR_RETURN_PARTIAL
        ):
            return prepared
        return [replace(prompt, request=replace(prompt.request, tokens_per_delta=UNREAD_TOKENS_PER_DELTA)) for prompt in prepared]

    async def stream(self, call: Call, message: inference_service_pb2.StreamGenerateRequest, limits: ModelLimits) -> Prepared:
        """Returns the request for the prompt of a validated message. Raises ServeError."""
        (prepared,) = await self._requests(call, message, [message.prompt], "prompt", limits, None)
        return prepared

    async def _checked(self, check: Callable[[_M, Served], ModelLimits], call: Call, message: _M) -> ModelLimits:
        served = self._served.seen_by(call.tenant)
        if is_quick(message.parameters.structured_output):
            return check(message, served)
        return await asyncio.to_thread(check, message, served)

    async def _requests(
        self,
        call: Call,
        message: UnaryRequest | inference_service_pb2.StreamGenerateRequest,
        texts: Sequence[generation_pb2.Prompt],
        path: str,
        limits: ModelLimits,
        beam: generation_pb2.BeamSearch | None,
    ) -> list[Prepared]:
        texts = await self._chats.as_texts(texts, path, message.adapter)
        fitted = await self._fitted(call, texts, path, prompts.generation_room(message.parameters, limits.max_model_len))
        return [
            Prepared(
                generation_request(
                    request_id=call.request_id if len(fitted) == 1 else f"{call.request_id}#{index}",
                    prompt_token_ids=prompt.token_ids,
                    max_tokens=prompts.output_tokens(prompt, path.format(index), message.parameters.stopping, limits.max_model_len),
                    parameters=message.parameters,
                    beam=beam,
                    adapter=message.adapter,
                    cache_salt=self._salts(call.tenant),
                    session=call.identity.routing_session,
                ),
                TokenCount(prompt=len(prompt.token_ids), truncated=prompt.truncated_tokens),
            )
            for index, prompt in enumerate(fitted)
        ]

    async def _fitted(
        self, call: Call, texts: Sequence[generation_pb2.Prompt], path: str, room: prompts.Room
    ) -> list[prompts.FittedPrompt]:
        clock = asyncio.get_running_loop().time
        began_s = clock()
        fitted = await prompts.fit_prompts(texts, path, room, self._tokenizer)
        call.progress.tokenization_s = clock() - began_s
        return fitted
