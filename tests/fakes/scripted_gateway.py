"""A gateway without engines: real gRPC on a free port, predictable responses, and scripted failures and delays.

Text comes back in upper case, a word a chunk; a token is a code point; a vector is (code points, 1). `script(method, *steps)` gives the
next calls of a method their fate, a step a call; after the last step calls are answered as usual.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neox_serve.core.errors import Reason, ServeError
from neox_serve.v1 import (
    generation_pb2,
    inference_service_pb2,
    inference_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    ops_service_pb2,
    ops_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
)
from neox_serve.wire.status import to_grpc_status

Step = ServeError | Callable[[], Awaitable[None]]
"""An error to end the call with, or something to do first (for streams: after the first chunk)."""


@dataclass(slots=True)
class Received:
    """A call as the server saw it. `time_left_s` is the time before the client's deadline, on arrival."""

    method: str
    request: Any
    metadata: dict[str, str]
    time_left_s: float | None


@dataclass(slots=True)
class ScriptedGateway:
    """An async context manager; `address` is host:port."""

    received: list[Received] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    credentials: grpc.ServerCredentials | None = None
    address: str = ""
    serving: bool = True
    status: ops_service_pb2.GetClusterStatusResponse = field(default_factory=ops_service_pb2.GetClusterStatusResponse)
    _steps: dict[str, deque[Step]] = field(default_factory=lambda: defaultdict(deque))
    _server: Any = None
    _arrival: asyncio.Event = field(default_factory=asyncio.Event)

    def script(self, method: str, *steps: Step) -> None:
        """Scripts the next calls of a method."""
        self._steps[method].extend(steps)

    def script_nothing(self, method: str) -> None:
        """Removes what was scripted for a method and has not happened."""
        self._steps[method].clear()

    async def stop(self) -> None:
        """Stops at once, as a killed process does."""
        await self._server.stop(None)

    def requests(self, method: str) -> list[Any]:
        """Returns the requests of a method so far."""
        return [received.request for received in self.received if received.method == method]

    async def wait_for_calls(self, count: int) -> None:
        """Returns once this many calls have arrived; fails after 20 s."""
        async with asyncio.timeout(20):
            while len(self.received) < count:
                await self._arrival.wait()
                self._arrival.clear()

    async def hang(self) -> None:
        """Waits for ever."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(_Inference(self), self._server)
        token_service_pb2_grpc.add_TokenServiceServicer_to_server(_Tokens(self), self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), self._server)
        ops_service_pb2_grpc.add_OpsServiceServicer_to_server(_Ops(self), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(_Health(self), self._server)
        if self.credentials:
            port = self._server.add_secure_port("127.0.0.1:0", self.credentials)
        else:
            port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def arrived(self, method: str, request: Any, context: Any) -> Step | None:
        """Records a call and returns its scripted fate. If that is an error, the call has been ended with it."""
        self.received.append(Received(method, request, dict(context.invocation_metadata()), context.time_remaining()))
        self._arrival.set()
        step = self._steps[method].popleft() if self._steps[method] else None
        if isinstance(step, ServeError):
            status: Any = to_grpc_status(step)
            await context.abort(status.code, status.details, status.trailing_metadata)
        return step

    async def perform(self, method: str, request: Any, context: Any) -> None:
        """Records a unary call and applies its scripted fate."""
        step = await self.arrived(method, request, context)
        if step is not None and not isinstance(step, ServeError):
            await step()


USAGE = generation_pb2.Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=2, truncated_tokens=4)


def _timings() -> generation_pb2.Timings:
    timings = generation_pb2.Timings()
    timings.tokenization.FromMilliseconds(1)
    timings.admission.FromMilliseconds(2)
    timings.first_token.FromMilliseconds(30)
    timings.total.FromMilliseconds(400)
    return timings


def _text(prompt: generation_pb2.Prompt) -> str:
    return prompt.text if prompt.HasField("text") else "".join(map(chr, prompt.token_ids.ids))


def _completion(prompt: generation_pb2.Prompt, index: int) -> generation_pb2.Completion:
    text = _text(prompt).upper()
    finish = generation_pb2.Finish(index=index, reason=generation_pb2.FINISH_REASON_STOP, stop_sequence="!")
    return generation_pb2.Completion(index=index, text=text, token_ids=map(ord, text), finish=finish)


class _Inference(inference_service_pb2_grpc.InferenceServiceServicer):
    def __init__(self, gateway: ScriptedGateway) -> None:
        self._gateway = gateway

    async def Estimate(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._gateway.perform("Estimate", request, context)
        left = inference_service_pb2.QuotaLeft(tokens_this_minute=90)
        response = inference_service_pb2.EstimateResponse(prompt_tokens=3, max_completion_tokens=5, quota_left=left, fits_quota=True)
        response.expected_wait.FromMilliseconds(1_500)
        return response

    async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._gateway.perform("Generate", request, context)
        counts = range(request.parameters.n or 1)
        results = [
            inference_service_pb2.PromptResult(completions=[_completion(prompt, index) for index in counts], usage=USAGE)
            for prompt in request.prompts
        ]
        return inference_service_pb2.GenerateResponse(
            request_id=request.request_id, model="scripted", seed=7, results=results, usage=USAGE, timings=_timings()
        )

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        step = await self._gateway.arrived("StreamGenerate", request, context)
        for position, word in enumerate(_text(request.prompt).upper().split(" ")):
            text = f" {word}" if position else word
            chunk = inference_service_pb2.StreamChunk(index=0, text=text, token_ids=map(ord, text))
            yield inference_service_pb2.StreamGenerateResponse(chunk=chunk)
            if position == 0 and step is not None and not isinstance(step, ServeError):
                await step()
        finish = generation_pb2.Finish(index=0, reason=generation_pb2.FINISH_REASON_LENGTH)
        final = inference_service_pb2.StreamFinal(
            request_id=request.request_id, model="scripted", finishes=[finish], usage=USAGE, timings=_timings()
        )
        yield inference_service_pb2.StreamGenerateResponse(final=final)

    async def Score(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._gateway.perform("Score", request, context)
        scores = []
        for item in request.items:
            token = generation_pb2.TokenLogprob(token_id=len(_text(item.continuation)), text=_text(item.continuation), logprob=-0.5, rank=1)
            scores.append(inference_service_pb2.Score(log_likelihood=-float(len(_text(item.context))), is_greedy=True, tokens=[token]))
        return inference_service_pb2.ScoreResponse(request_id=request.request_id, model="scripted", scores=scores, usage=USAGE)

    async def Embed(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._gateway.perform("Embed", request, context)
        vectors = [
            inference_service_pb2.Embedding(values=[len(_text(prompt)), 1.0], prompt_tokens=len(_text(prompt))) for prompt in request.inputs
        ]
        return inference_service_pb2.EmbedResponse(request_id=request.request_id, model="scripted", embeddings=vectors, usage=USAGE)


class _Tokens(token_service_pb2_grpc.TokenServiceServicer):
    def __init__(self, gateway: ScriptedGateway) -> None:
        self._gateway = gateway

    async def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._gateway.perform("Tokenize", request, context)
        results = [
            token_service_pb2.TokenizedText(
                token_ids=map(ord, text),
                offsets=[token_service_pb2.TokenOffset(start=it, end=it + 1) for it in range(len(text)) if request.include_offsets],
            )
            for text in request.texts
        ]
        return token_service_pb2.TokenizeResponse(request_id=request.request_id, model="scripted", results=results)

    async def Detokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._gateway.perform("Detokenize", request, context)
        texts = ["".join(map(chr, sequence.ids)) for sequence in request.sequences]
        return token_service_pb2.DetokenizeResponse(request_id=request.request_id, model="scripted", texts=texts)


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, gateway: ScriptedGateway) -> None:
        self._gateway = gateway

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._gateway.perform("ListModels", request, context)
        return model_service_pb2.ListModelsResponse(models=[_model()])

    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._gateway.perform("GetModel", request, context)
        if request.name != "scripted":
            status: Any = to_grpc_status(ServeError(Reason.UNKNOWN_MODEL, f"no model {request.name}"))
            await context.abort(status.code, status.details, status.trailing_metadata)
        return model_service_pb2.GetModelResponse(model=_model())


def _model() -> model_service_pb2.Model:
    return model_service_pb2.Model(
        name="scripted",
        source="builtin",
        capabilities=[model_service_pb2.CAPABILITY_GENERATE, model_service_pb2.CAPABILITY_EMBED],
        limits=model_service_pb2.ModelLimits(max_model_len=2048, vocabulary_size=50432, prompts_per_request=64, n=16),
        embedding=model_service_pb2.EmbeddingFacts(dimensions=2, default_pooling=inference_service_pb2.POOLING_MEAN),
        ready_generation_replicas=2,
    )


class _Ops(ops_service_pb2_grpc.OpsServiceServicer):
    def __init__(self, gateway: ScriptedGateway) -> None:
        self._gateway = gateway

    async def GetClusterStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._gateway.perform("GetClusterStatus", request, context)
        return self._gateway.status

    async def DrainReplica(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._gateway.perform("DrainReplica", request, context)
        return ops_service_pb2.DrainReplicaResponse()


class _Health(health_pb2_grpc.HealthServicer):
    def __init__(self, gateway: ScriptedGateway) -> None:
        self._gateway = gateway

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._gateway.perform("Check", request, context)
        return self._status()

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield self._status()
        await asyncio.Event().wait()

    def _status(self) -> health_pb2.HealthCheckResponse:
        kinds = health_pb2.HealthCheckResponse
        return kinds(status=kinds.SERVING if self._gateway.serving else kinds.NOT_SERVING)
