"""A real gateway on a real port, with a dispatcher that the test provides."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import grpc

from neox_serve.gateway.dispatch.protocol import Dispatcher
from neox_serve.gateway.server.server import GatewayServer
from neox_serve.model.facts import ModelFacts
from neox_serve.model.model_files import locate, read_facts
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.settings import Settings, parse
from neox_serve.settings.slices import GatewayProcessSettings
from neox_serve.tenancy.platform import Platform
from neox_serve.v1.inference_service_pb2_grpc import InferenceServiceStub
from neox_serve.v1.model_service_pb2_grpc import ModelServiceStub
from neox_serve.v1.ops_service_pb2_grpc import OpsServiceStub
from neox_serve.v1.token_service_pb2_grpc import TokenServiceStub

if TYPE_CHECKING:
    from neox_serve.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub
    from neox_serve.v1.model_service_pb2_grpc import ModelServiceAsyncStub
    from neox_serve.v1.ops_service_pb2_grpc import OpsServiceAsyncStub
    from neox_serve.v1.token_service_pb2_grpc import TokenServiceAsyncStub

GATEWAY_ID = "gateway-under-test"


@dataclass(frozen=True, slots=True)
class Stubs:
    """Stubs of all services on one channel."""

    channel: grpc.aio.Channel
    inference: "InferenceServiceAsyncStub"
    tokens: "TokenServiceAsyncStub"
    models: "ModelServiceAsyncStub"
    ops: "OpsServiceAsyncStub"

    @classmethod
    def on(cls, channel: grpc.aio.Channel) -> "Stubs":
        """Returns stubs of every service on this channel."""
        return cls(channel, InferenceServiceStub(channel), TokenServiceStub(channel), ModelServiceStub(channel), OpsServiceStub(channel))


@cache
def builtin_facts() -> ModelFacts:
    """Returns the facts of the built-in model."""
    return read_facts(locate("builtin", None))


@cache
def builtin_tokenizer() -> Tokenizer:
    """Returns the tokenizer of the built-in model."""
    return Tokenizer(locate("builtin", None))


def gateway_settings(**sections: dict[str, Any]) -> Settings:
    """Returns settings with a gateway on a free port. Sections are those of the YAML file."""
    gateway = {"port": 0, **sections.pop("gateway", {})}
    return parse({**sections, "gateway": gateway})


@asynccontextmanager
async def running_gateway(
    dispatcher: Dispatcher, *, platform: Platform | None = None, **sections: dict[str, Any]
) -> AsyncIterator[GatewayServer]:
    """Runs a gateway until the block ends."""
    server = GatewayServer(
        settings=GatewayProcessSettings.from_settings(gateway_settings(**sections)),
        gateway_id=GATEWAY_ID,
        dispatcher=dispatcher,
        tokenizer=builtin_tokenizer(),
        facts=builtin_facts(),
        platform=platform,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def connected(port: int, *options: tuple[str, Any]) -> AsyncIterator[Stubs]:
    """Yields stubs on a channel of their own."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1), *options]) as channel:
        yield Stubs.on(channel)
