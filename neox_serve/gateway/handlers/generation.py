"""InferenceService.Generate and StreamGenerate: prepared requests go to engines, and what comes back goes to the client."""

import asyncio
from collections.abc import Iterable, Sequence

from neox_serve.core.types import Delta
from neox_serve.gateway.dispatch.protocol import Engines, TokenStream
from neox_serve.gateway.requests.coalesced_stream import coalesced
from neox_serve.gateway.requests.collecting import PromptCollector, StreamProgress
from neox_serve.gateway.requests.completing import Completer, note_prediction
from neox_serve.gateway.requests.preparing import Preparer, Salts
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.server.calls import Call, StreamWriter, TokenCount
from neox_serve.gateway.server.deadlines import Expired, Expiry
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.v1 import generation_pb2, inference_service_pb2
from neox_serve.wire.public_messages import ChunkWriter, logprob_messages


class Generation:
    """Answers generation calls."""

    def __init__(self, *, served: Served, tokenizer: Tokenizer, dispatcher: Engines, salts: Salts) -> None:
        self._model = served.model
        self._preparer = Preparer(served, tokenizer, salts)
        self._completer = Completer(served.model, dispatcher)

    async def generate(self, call: Call, message: inference_service_pb2.GenerateRequest) -> inference_service_pb2.GenerateResponse:
        """All prompts side by side. Raises ServeError, of the first prompt that fails; the others are then cancelled."""
        collectors: list[PromptCollector] = []
        call.accounting.model = self._model
        try:
            async with asyncio.timeout_at(_ends_at_s(call, message.parameters)) as timeout:
                await self._complete(call, message, collectors)
        except TimeoutError:
            if not timeout.expired():
                raise
            _expire(call, message.parameters, checked=bool(collectors))
        finally:
            call.accounting.tokens = TokenCount()
            for collector in collectors:
                call.accounting.tokens.add(collector.progress.tokens)
        return self._response(call, message, collectors)

    async def stream_generate(self, call: Call, message: inference_service_pb2.StreamGenerateRequest, writer: StreamWriter) -> None:
        """Chunks as they come, then the final event. Raises ServeError."""
        call.accounting.model = self._model
        outgoing = _Outgoing(call, _ends_at_s(call, message.parameters), writer)
        try:
            limits = await outgoing.wait(self._preparer.check_stream(call, message))
            outgoing.progress.sequences = max(1, message.parameters.n)
            prepared = await outgoing.wait(self._preparer.stream(call, message, limits))
            call.accounting.tokens = outgoing.progress.tokens = prepared.tokens
            await outgoing.wait(self._completer.reserve(call, [prepared]))
            stream = await outgoing.wait(self._completer.open(call, prepared))
            await outgoing.forward(coalesced(stream, message.options, outgoing.wait))
        except Expired:
            _expire(call, message.parameters, checked=outgoing.progress.sequences > 0)
        finally:
            outgoing.close()
        await writer.write(self._final(call, message, outgoing.progress).SerializeToString())

    async def _complete(self, call: Call, message: inference_service_pb2.GenerateRequest, collectors: list[PromptCollector]) -> None:
        """Fills `collectors`, one a prompt once the message has been checked."""
        limits = await self._preparer.check_unary(call, message)
        collectors += [PromptCollector(_sequences(message)) for _ in message.prompts]
        prepared = await self._preparer.unary(call, message, limits)
        await self._completer.complete(call, prepared, collectors)

    def _response(
        self, call: Call, message: inference_service_pb2.GenerateRequest, collectors: Sequence[PromptCollector]
    ) -> inference_service_pb2.GenerateResponse:
        return inference_service_pb2.GenerateResponse(
            request_id=call.request_id,
            model=self._model,
            seed=_seed(message.parameters),
            results=[collector.message() for collector in collectors],
            usage=call.accounting.tokens.message(),
            timings=call.timings(asyncio.get_running_loop().time()),
        )

    def _final(
        self, call: Call, message: inference_service_pb2.StreamGenerateRequest, progress: StreamProgress
    ) -> inference_service_pb2.StreamGenerateResponse:
        final = inference_service_pb2.StreamFinal(
            request_id=call.request_id,
            model=self._model,
            seed=_seed(message.parameters),
            finishes=progress.finish_messages(),
            prompt_logprobs=logprob_messages(progress.prompt_logprobs),
            usage=progress.tokens.message(),
            timings=call.timings(asyncio.get_running_loop().time()),
        )
        return inference_service_pb2.StreamGenerateResponse(final=final)


class _Outgoing:
    """One stream on its way to a client. One writer: while a write waits for a slow client, deltas gather and then go out as one chunk."""

    def __init__(self, call: Call, ends_at_s: float, writer: StreamWriter) -> None:
        self._call = call
        self._writer = writer
        self._clock = asyncio.get_running_loop().time
        self._chunks = ChunkWriter()
        self._stream: TokenStream | None = None
        self._expiry = Expiry(ends_at_s, self._free_engine)
        self.wait = self._expiry.wait
        self.progress = StreamProgress(0, TokenCount())

    async def forward(self, stream: TokenStream) -> None:
        """Sends a stream's deltas until its end. Raises Expired, ServeError."""
        self._stream = stream
        self._call.progress.admitted(stream.admission_s, stream.replica_id, stream.explanation)
        while not self.progress.ended:
            for chunk in self._chunks_of(await self._expiry.wait(stream.next(self._pass_on))):
                await self._writer.write(chunk)
            if self._expiry.expired and not self.progress.ended:
                raise Expired

    def _pass_on(self, delta: Delta) -> bool:
        """Sends a delta at once, if the client has taken all before it."""
        if self._writer.busy:
            return False
        for chunk in self._chunks_of((delta,)):
            self._writer.put(chunk)
        return True

    def _chunks_of(self, deltas: Iterable[Delta]) -> list[bytes]:
        """The serialised chunks of deltas, once what they say has been noted."""
        news = self.progress.take(deltas)
        for sequence in news:
            if sequence.token_ids:
                self._call.progress.tokens_arrived(self._clock())
                break
        return self._chunks.write_sequences(news)

    def close(self) -> None:
        """Stops the timer and frees the engine, whatever has happened."""
        self._expiry.close()
        self._free_engine()
        if self._stream is not None:
            self._call.progress.gaps_s += self._stream.gaps_s
            note_prediction(self._call, self._stream, self.progress)

    def _free_engine(self) -> None:
        if self._stream is not None:
            self._stream.cancel()


def _sequences(message: inference_service_pb2.GenerateRequest) -> int:
    """Completions of each prompt."""
    asked = message.beam_search.num_return if message.HasField("beam_search") else message.parameters.n
    return max(1, asked)


def _seed(parameters: generation_pb2.GenerationParameters) -> int | None:
    return parameters.sampling.seed if parameters.sampling.HasField("seed") else None


def _wants_partial(parameters: generation_pb2.GenerationParameters) -> bool:
    return parameters.on_deadline == generation_pb2.DEADLINE_BEHAVIOR_RETURN_PARTIAL


def _ends_at_s(call: Call, parameters: generation_pb2.GenerationParameters) -> float:
    return call.deadline.partial_at_s if _wants_partial(parameters) else call.deadline.ends_at_s


def _expire(call: Call, parameters: generation_pb2.GenerationParameters, *, checked: bool) -> None:
    """The deadline has come: an answer of what there is, where that is wanted and the message is known to be good; else an error."""
    if not (checked and _wants_partial(parameters)):
        raise call.deadline.exceeded() from None
    call.progress.partial = True
