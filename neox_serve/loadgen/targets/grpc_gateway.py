"""neox-serve's gateway, by bare grpc.aio calls: messages stay bytes until the run is over."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from neox_serve.loadgen.records import Arrival, TokenIds
from neox_serve.loadgen.targets import Stamp, Target
from neox_serve.v1 import generation_pb2, inference_service_pb2

_METHOD = "/neox_serve.v1.InferenceService/StreamGenerate"


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """address: host:port. channels: connections that the streams are spread over."""

    address: str
    channels: int = 1

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Target]:
        """Opens all connections first, so that no request pays for one."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        channels = [grpc.aio.insecure_channel(self.address, options) for _ in range(self.channels)]
        try:
            for channel in channels:
                await channel.channel_ready()
            yield GatewayTarget([channel.unary_stream(_METHOD) for channel in channels])
        finally:
            for channel in channels:
                await channel.close()


class GatewayTarget:
    """Streams over the given methods in turn."""

    def __init__(self, methods: Sequence[Any]) -> None:
        self._methods = methods
        self._sent = 0

    async def send(self, prompt: TokenIds, output_tokens: int, stamp: Stamp) -> None:
        """One StreamGenerate call. Raises AioRpcError."""
        self._sent += 1
        call = self._methods[self._sent % len(self._methods)](stream_request(prompt, output_tokens).SerializeToString())
        while (message := await call.read()) is not grpc.aio.EOF:
            stamp(message)

    def decode(self, stamped: Sequence[tuple[float, bytes]]) -> list[Arrival]:
        """One arrival a message."""
        parse = inference_service_pb2.StreamGenerateResponse.FromString
        return [Arrival(at_s, tuple(parse(message).chunk.token_ids)) for at_s, message in stamped]


def stream_request(prompt: TokenIds, output_tokens: int) -> inference_service_pb2.StreamGenerateRequest:
    """Exactly this many greedy tokens."""
    return inference_service_pb2.StreamGenerateRequest(
        prompt=generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=prompt)),
        parameters=generation_pb2.GenerationParameters(
            sampling=generation_pb2.Sampling(temperature=0.0),
            stopping=generation_pb2.Stopping(max_tokens=output_tokens, ignore_eos=True),
        ),
    )
