"""InferenceService.Embed: vectors of inputs."""

import asyncio
from dataclasses import replace

from neox_serve.core.types import EmbeddingRequest, EmbeddingResult
from neox_serve.gateway.dispatch.protocol import Engines
from neox_serve.gateway.requests import prompts, validation
from neox_serve.gateway.requests.completing import side_by_side
from neox_serve.gateway.requests.preparing import Salts
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.server.calls import Call
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.v1 import inference_service_pb2
from neox_serve.wire.public_messages import embedding_message, pooling


class Embedding:
    """Implements the RPC."""

    def __init__(self, *, served: Served, tokenizer: Tokenizer, dispatcher: Engines, salts: Salts) -> None:
        self._served = served
        self._salts = salts
        self._tokenizer = tokenizer
        self._dispatcher = dispatcher

    async def embed(self, call: Call, message: inference_service_pb2.EmbedRequest) -> inference_service_pb2.EmbedResponse:
        """Embeds all inputs concurrently. Raises the ServeError of the first input that fails, and cancels the others."""
        call.accounting.model = self._served.model
        requests = await self._requests(call, message)
        call.accounting.reservation = await self._dispatcher.reserve(call.tenant, call.accounting.tokens.prompt)
        terms = call.terms(asyncio.get_running_loop().time())
        traced = [replace(request, traceparent=terms.traceparent) for request in requests] if terms.traceparent else requests
        results = await side_by_side([self._dispatcher.embed(self._served.model, request, terms) for request in traced])
        call.progress.admitted(max(result.admission_s for result in results), results[-1].replica_id)
        call.accounting.tokens.cached = sum(result.cached_tokens for result in results)
        return self._response(call, requests, results)

    async def _requests(self, call: Call, message: inference_service_pb2.EmbedRequest) -> list[EmbeddingRequest]:
        limits = validation.check_embed(message, self._served.seen_by(call.tenant))
        room = prompts.embedding_room(message.truncation, limits.max_model_len)
        clock = asyncio.get_running_loop().time
        began_s = clock()
        fitted = await prompts.fit_prompts(message.inputs, "inputs[{}]", room, self._tokenizer)
        call.progress.tokenization_s = clock() - began_s
        call.accounting.tokens.prompt = sum(len(prompt.token_ids) for prompt in fitted)
        call.accounting.tokens.truncated = sum(prompt.truncated_tokens for prompt in fitted)
        method = pooling(message.pooling, self._served.default_pooling)
        normalize = message.normalize if message.HasField("normalize") else True
        salt = self._salts(call.tenant)
        return [
            EmbeddingRequest(f"{call.request_id}#{index}", prompt.token_ids, method, normalize, salt) for index, prompt in enumerate(fitted)
        ]

    def _response(
        self, call: Call, requests: list[EmbeddingRequest], results: list[EmbeddingResult]
    ) -> inference_service_pb2.EmbedResponse:
        vectors = [embedding_message(result, len(request.prompt_token_ids)) for request, result in zip(requests, results, strict=True)]
        return inference_service_pb2.EmbedResponse(
            request_id=call.request_id,
            model=self._served.model,
            embeddings=vectors,
            layer=self._served.embedding_layer,
            usage=call.accounting.tokens.message(),
            timings=call.timings(asyncio.get_running_loop().time()),
        )
