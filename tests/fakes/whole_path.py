"""Client, gateway, router, link and replicas in one process, over the fake engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import GenerationRequest, Pool
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming, Fault
from neox_serve.engine.fake.outputs import Vocabulary
from neox_serve.gateway.dispatch.link_dispatcher import LinkDispatcher
from neox_serve.gateway.server.server import GatewayServer
from neox_serve.replica.server import ReplicaServer
from neox_serve.router.server import RouterServer
from neox_serve.v1 import inference_service_pb2
from tests.fakes.gateways import Stubs, connected, running_gateway
from tests.fakes.link_cluster import MODEL, LinkCluster, until

TIMING = FakeTiming(ttft_s=0.01, itl_s=0.01)
FAILING_PROMPT = 666


@dataclass(frozen=True, slots=True)
class Path:
    """All parts from the client to the engines. Of `engines` and `replicas`, the last belongs to the embedding pool."""

    cluster: LinkCluster
    router: RouterServer
    dispatcher: LinkDispatcher
    server: GatewayServer
    stubs: Stubs
    engines: tuple[FakeEngine, ...]
    replicas: tuple[ReplicaServer, ...]
    requests: list[GenerationRequest]

    def engines_idle(self) -> bool:
        """Returns whether no engine has a request."""
        return all(engine.stats().running_requests + engine.stats().waiting_requests == 0 for engine in self.engines)

    async def nothing_left(self) -> None:
        """Returns when gateway, dispatcher, engines and the router's leases are empty. Raises TimeoutError."""
        await until(lambda: self.engines_idle() and not (self.server.requests_in_flight or self.dispatcher.requests_in_flight))
        async with asyncio.timeout(20):
            while await self._leases():  # noqa: ASYNC110 - polls the router
                await asyncio.sleep(0.01)

    async def _leases(self) -> int:
        view = await self.dispatcher.cluster_view(1.0)
        assert view.from_router
        return sum(replica.outstanding.requests for replica in view.replicas)


def faults(request: GenerationRequest) -> Fault | None:
    """Fails prompts that begin with a certain token, after two generated tokens."""
    failure = ServeError(Reason.ENGINE_FAILED, "CUDA error in layer 7")
    return Fault(failure, after_tokens=2) if request.prompt_token_ids[0] == FAILING_PROMPT else None


@asynccontextmanager
async def whole_path(
    *,
    replicas: int = 1,
    timing: FakeTiming = TIMING,
    vocabulary: Vocabulary = Vocabulary(),  # noqa: B008 - frozen
    adapters: tuple[str, ...] = (),
    policy: str = "kv-aware",
    **gateway: Any,
) -> AsyncIterator[Path]:
    """Starts all parts, and stops them when the block ends. `policy` is the routing policy."""
    requests: list[GenerationRequest] = []

    def noted(request: GenerationRequest) -> Fault | None:
        requests.append(request)
        return faults(request)

    async with LinkCluster() as cluster:
        router = await cluster.router(policy=policy)
        options: Any = {"vocabulary": vocabulary, "adapters": frozenset(adapters), "faults": noted}
        engines = (*(FakeEngine(timing, **options) for _ in range(replicas)), FakeEngine(timing, vocabulary=vocabulary))
        pools = (*[Pool.GENERATION] * replicas, Pool.EMBEDDING)
        servers = tuple([await cluster.replica(engine, pool) for engine, pool in zip(engines, pools, strict=True)])
        dispatcher = await cluster.dispatcher(replicas=len(servers))
        model = {"name": MODEL, "adapters": [{"name": name, "path": name} for name in adapters]}
        async with running_gateway(dispatcher, model=model, gateway=gateway) as server, connected(server.port) as stubs:
            yield Path(cluster, router, dispatcher, server, stubs, engines, servers, requests)
        for one in engines:
            await one.close()


def stream_request(first: int = 5, **parameters: Any) -> inference_service_pb2.StreamGenerateRequest:
    """Returns a request to stream the prompt (first, 6, 7), with parameters in JSON form instead of 1000 tokens."""
    fields = {"prompt": {"tokenIds": {"ids": [first, 6, 7]}}, "parameters": {"stopping": {"maxTokens": 1000}, **parameters}}
    return json_format.ParseDict(fields, inference_service_pb2.StreamGenerateRequest())


def unary_request(first: int = 5, prompts: int = 1, **parameters: Any) -> inference_service_pb2.GenerateRequest:
    """Returns one unary request with the same prompt several times."""
    stream = stream_request(first, **parameters)
    return inference_service_pb2.GenerateRequest(prompts=[stream.prompt] * prompts, parameters=stream.parameters)


async def events_of(path: Path, request: inference_service_pb2.StreamGenerateRequest) -> list[Any]:
    """Returns all events of a stream."""
    return [event async for event in path.stubs.inference.StreamGenerate(request)]
