"""The lowest rung: the fake engine behind a bare grpc.aio server, the shortest path to a client that Python has."""

import asyncio
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import grpc

from neox_serve.core.types import Delta, Pool, SequenceDelta
from neox_serve.engine.factory import start_engine
from neox_serve.engine.protocol import Engine
from neox_serve.settings import Settings
from neox_serve.settings.slices import PoolEngineSettings
from neox_serve.v1 import generation_pb2
from neox_serve.v1.inference_service_pb2 import StreamFinal, StreamGenerateRequest, StreamGenerateResponse
from neox_serve.wire.public_messages import ChunkWriter, finish_message, generation_request
from tests.bench.ladder.hosts import hosting

Context = grpc.aio.ServicerContext[bytes, bytes]

_OPTIONS = (("grpc.server.max_pending_requests", 100_000), ("grpc.server.max_pending_requests_hard_limit", 100_000))
"""Options as in the gateway: a burst of calls waits for the event loop instead of being cancelled by grpc."""


class _Stream:
    """Deltas of one call that are not sent yet."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.news = asyncio.Event()


class BareServicer:
    """Serves StreamGenerate without validation, deadlines, or error details."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._keys = count(1)
        self._streams: dict[Hashable, _Stream] = {}
        # Always the same object, because the engine groups the deltas of a step by sink.
        self._sink = self._take

    async def stream_generate(self, raw: bytes, context: Context) -> None:
        """Writes the chunks as they are generated, then the final event."""
        message = StreamGenerateRequest.FromString(raw)
        key, stream = next(self._keys), _Stream()
        self._streams[key] = stream
        request = generation_request(
            request_id=str(key),
            prompt_token_ids=tuple(message.prompt.token_ids.ids),
            max_tokens=message.parameters.stopping.max_tokens,
            parameters=message.parameters,
        )
        try:
            await self._engine.generate(key, request, self._sink)
            await context.write(await _write_chunks(stream, context, len(request.prompt_token_ids)))
        finally:
            del self._streams[key]
            await self._engine.abort(key)

    def _take(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            stream = self._streams[delta.key]
            stream.deltas.append(delta)
            stream.news.set()


async def _write_chunks(stream: _Stream, context: Context, prompt_tokens: int) -> bytes:
    """Writes the chunks of a stream until its end, and returns the final event."""
    chunks, final, ended = ChunkWriter(), StreamFinal(), False
    completion_tokens = 0
    while not ended:
        await stream.news.wait()
        stream.news.clear()
        deltas, stream.deltas = stream.deltas, []
        sequences: list[SequenceDelta] = [sequence for delta in deltas for sequence in delta.sequences]
        for chunk in chunks.write_sequences(sequences):
            await context.write(chunk)
        completion_tokens += sum(len(sequence.token_ids) for sequence in sequences)
        final.finishes.extend(finish_message(sequence.index, sequence.finish) for sequence in sequences if sequence.finish)
        ended = deltas[-1].end
    final.usage.CopyFrom(generation_pb2.Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens))
    return StreamGenerateResponse(final=final).SerializeToString()


@asynccontextmanager
async def bare(settings: Settings, _folder: Path) -> AsyncIterator[str]:
    """Runs the engine and the server, and yields the server's address."""
    engine = await start_engine(PoolEngineSettings.from_settings(settings, Pool.GENERATION))
    server = grpc.aio.server(options=_OPTIONS)
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(BareServicer(engine).stream_generate)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("neox_serve.v1.InferenceService", {"StreamGenerate": handler}),))
    address = f"{settings.gateway.host}:{settings.gateway.port}"
    server.add_insecure_port(address)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)
        await engine.close()


if __name__ == "__main__":
    hosting.run("bare", bare)
