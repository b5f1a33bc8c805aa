"""InferenceService.Generate and StreamGenerate: sends prepared requests to engines, and their output to the client."""

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
    """Implements the RPCs."""

    def __init__(self, *, served: Served, tokenizer: Tokenizer, dispatcher: Engines, salts: Salts) -> None:
        self._model = served.model
        self._preparer = Preparer(served, tokenizer, salts)
        self._completer = Completer(served.model, dispatcher)

    async def generate(self, call: Call, message: inference_service_pb2.GenerateRequest) -> inference_service_pb2.GenerateResponse:
        """Completes all prompts concurrently. Raises the ServeError of the first prompt that fails, and cancels the others."""
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
        """Sends chunks as they are generated, then the final event. Raises ServeError."""
        call.accounting.model = self._model
        output = _OutputStream(call, _ends_at_s(call, message.parameters), writer)
        try:
            limits = await output.wait(self._preparer.check_stream(call, message))
            output.progress.sequences = max(1, message.parameters.n)
            prepared = await output.wait(self._preparer.stream(call, message, limits))
            call.accounting.tokens = output.progress.tokens = prepared.tokens
            await output.wait(self._completer.reserve(call, [prepared]))
            stream = await output.wait(self._completer.open(call, prepared))
            await output.forward(coalesced(stream, message.options, output.wait))
        except Expired:
            _expire(call, message.parameters, checked=output.progress.sequences > 0)
        finally:
            output.close()
        await writer.write(self._final(call, message, output.progress).SerializeToString())

    async def _complete(self, call: Call, message: inference_service_pb2.GenerateRequest, collectors: list[PromptCollector]) -> None:
        """Runs the call. Adds one collector for each prompt to `collectors` once the message has been validated, and fills it."""
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


class _OutputStream:
    """Sends a generation to a client. While a write waits for a slow client, new deltas collect, and are then sent as one chunk."""

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
        """Sends the deltas of a stream until its end. Raises Expired at the deadline, or ServeError."""
        self._stream = stream
        self._call.progress.admitted(stream.admission_s, stream.replica_id, stream.explanation)
        while not self.progress.ended:
            for chunk in self._chunks_of(await self._expiry.wait(stream.next(self._send_now))):
                await self._writer.write(chunk)
            if self._expiry.expired and not self.progress.ended:
                raise Expired

    def _send_now(self, delta: Delta) -> bool:
        """Sends a delta at once if no earlier chunk waits for the client. Returns whether it did."""
        if self._writer.busy:
            return False
        for chunk in self._chunks_of((delta,)):
            self._writer.put(chunk)
        return True

    def _chunks_of(self, deltas: Iterable[Delta]) -> list[bytes]:
        """Records the progress in deltas and returns their serialized chunks."""
        sequences = self.progress.take(deltas)
        for sequence in sequences:
            if sequence.token_ids:
                self._call.progress.tokens_arrived(self._clock())
                break
        return self._chunks.write_sequences(sequences)

    def close(self) -> None:
        """Stops the timer and frees the engine, however the call ended."""
        self._expiry.close()
        self._free_engine()
        if self._stream is not None:
            self._call.progress.gaps_s += self._stream.gaps_s
            note_prediction(self._call, self._stream, self.progress)

    def _free_engine(self) -> None:
        if self._stream is not None:
            self._stream.cancel()


def _sequences(message: inference_service_pb2.GenerateRequest) -> int:
    """Returns the number of completions of each prompt."""
    sequences = message.beam_search.num_return if message.HasField("beam_search") else message.parameters.n
    return max(1, sequences)


def _seed(parameters: generation_pb2.GenerationParameters) -> int | None:
    return parameters.sampling.seed if parameters.sampling.HasField("seed") else None


def _wants_partial(parameters: generation_pb2.GenerationParameters) -> bool:
    return parameters.on_deadline == generation_pb2.DEADLINE_BEHAVIOR_RETURN_PARTIAL


def _ends_at_s(call: Call, parameters: generation_pb2.GenerationParameters) -> float:
    return call.deadline.partial_at_s if _wants_partial(parameters) else call.deadline.ends_at_s


def _expire(call: Call, parameters: generation_pb2.GenerationParameters, *, checked: bool) -> None:
    """Handles the deadline: marks the response as partial if the client wants that and its message is valid, else raises the error."""
    if not (checked and _wants_partial(parameters)):
        raise call.deadline.exceeded() from None
    call.progress.partial = True
