"""The neox-serve gateway, called with plain grpc.aio. Messages stay bytes until the run is over."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from neox_serve.loadgen.records import Arrival, Response
from neox_serve.loadgen.targets import Stamp, Target, TargetError
from neox_serve.loadgen.workloads import Prompt
from neox_serve.v1 import generation_pb2, inference_service_pb2

_METHOD = "/neox_serve.v1.InferenceService/StreamGenerate"

Metadata = tuple[tuple[str, str], ...]


class Credentials(Protocol):
    """Credentials for a TLS channel, such as the client's `Tls`."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files and returns channel credentials. Raises OSError."""


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """How to connect to a gateway."""

    address: str
    """host:port."""
    channels: int = 1
    """Number of connections over which the streams are distributed."""
    model: str = ""
    """Empty for the model that the gateway serves."""
    tls: Credentials | None = None
    """None for plain text."""
    metadata: Metadata = ()
    """Sent with every call."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Target]:
        """Opens all connections in advance, so that no request includes connection time."""
        channels = [self._channel() for _ in range(self.channels)]
        try:
            for channel in channels:
                await channel.channel_ready()
            yield GatewayTarget([channel.unary_stream(_METHOD) for channel in channels], self.model, self.metadata)
        finally:
            for channel in channels:
                await channel.close()

    def _channel(self) -> grpc.aio.Channel:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        if self.tls is None:
            return grpc.aio.insecure_channel(self.address, options)
        return grpc.aio.secure_channel(self.address, self.tls.credentials(), options)


class GatewayTarget:
    """Sends requests over several connections in turn."""

    def __init__(self, methods: Sequence[Any], model: str = "", metadata: Metadata = ()) -> None:
        self._methods = methods
        self._model = model
        self._metadata = metadata
        self._sent = 0

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """Makes one StreamGenerate call. Raises TargetError."""
        self._sent += 1
        method = self._methods[self._sent % len(self._methods)]
        call = method(stream_request(prompt, output_tokens, self._model).SerializeToString(), metadata=self._metadata)
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                stamp(message)
        except grpc.aio.AioRpcError as error:
            raise TargetError(f"{error.code().name}: {error.details()}") from error

    def decode(self, stamped: Sequence[tuple[float, bytes]]) -> Response:
        """Decodes the messages; each one is an arrival."""
        parse = inference_service_pb2.StreamGenerateResponse.FromString
        messages = [(at_s, parse(message)) for at_s, message in stamped]
        usages = [message.final.usage.prompt_tokens for _, message in messages if message.HasField("final")]
        return Response([Arrival(at_s, tuple(message.chunk.token_ids)) for at_s, message in messages], usages[-1] if usages else None)


def stream_request(prompt: Prompt, output_tokens: int, model: str = "") -> inference_service_pb2.StreamGenerateRequest:
    """Returns a request for exactly this many greedy tokens."""
    message = (
        generation_pb2.Prompt(text=prompt)
        if isinstance(prompt, str)
        else generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=prompt))
    )
    return inference_service_pb2.StreamGenerateRequest(
        model=model,
        prompt=message,
        parameters=generation_pb2.GenerationParameters(
            sampling=generation_pb2.Sampling(temperature=0.0),
            stopping=generation_pb2.Stopping(max_tokens=output_tokens, ignore_eos=True),
        ),
    )
