"""A router, replicas and gateways' dispatchers in one process, over real gRPC on the loopback interface."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from random import Random
from types import TracebackType
from typing import Any, Self

import pytest

from neox_serve.core.errors import ServeError
from neox_serve.core.types import Delta, GenerationRequest, Pool, Stopping
from neox_serve.engine.protocol import Engine
from neox_serve.gateway.dispatch.link_dispatcher import LinkDispatcher
from neox_serve.gateway.dispatch.routed_stream import RoutedStream
from neox_serve.link.channels import LinkTls
from neox_serve.replica.server import ReplicaServer
from neox_serve.router.server import RouterServer
from neox_serve.settings.cluster import MetricsSettings, RouterSettings

MODEL = "m"
GRACE_S = 0.6


class LinkCluster:
    """Stops everything that a test has started in it. `resolve` returns the address of the newest router, even if it has stopped."""

    def __init__(self, tls: LinkTls | None = None) -> None:
        self._tls = tls
        self.router_address = "127.0.0.1:1"  # nothing listens there
        self._routers: list[RouterServer] = []
        self._replicas: list[ReplicaServer] = []
        self._dispatchers: list[LinkDispatcher] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for dispatcher in self._dispatchers:
            await dispatcher.close()
        for replica in self._replicas:
            await replica.stop()
        for router in self._routers:
            await router.stop()

    async def resolve(self) -> str:
        """Returns the newest router's address; a ResolveRouter."""
        return self.router_address

    async def router(self, *, grace_s: float = GRACE_S, **settings_values: Any) -> RouterServer:
        """Starts a router, which peers resolve from now on."""
        settings = RouterSettings(peer_grace_s=grace_s, **settings_values)
        router = RouterServer(settings=settings, metrics=MetricsSettings(port=0), clock=time.monotonic, rng=Random(1), tls=self._tls)
        await router.start()
        self.router_address = router.address
        self._routers.append(router)
        return router

    async def replica(self, engine: Engine, pool: Pool = Pool.GENERATION, *, max_requests: int = 4096, model: str = MODEL) -> ReplicaServer:
        """Starts a replica around an engine."""
        replica = ReplicaServer(
            engine=engine,
            pool=pool,
            model=model,
            host="127.0.0.1",
            max_requests=max_requests,
            resolve_router=self.resolve,
            load_interval_s=0.05,
            tls=self._tls,
        )
        await replica.start()
        self._replicas.append(replica)
        return replica

    async def dispatcher(
        self, gateway_id: str = "g", *, replicas: int = 1, admission_timeout_s: float = 2.0, start_timeout_s: float = 10.0
    ) -> LinkDispatcher:
        """Starts a gateway's dispatcher and waits until it can reach this many replicas."""
        dispatcher = self.unstarted(gateway_id, admission_timeout_s=admission_timeout_s)
        await self.start(dispatcher, replicas=replicas, timeout_s=start_timeout_s)
        return dispatcher

    def unstarted(self, gateway_id: str, *, admission_timeout_s: float = 2.0) -> LinkDispatcher:
        """Returns a gateway's dispatcher that is not started."""
        return LinkDispatcher(
            gateway_id=gateway_id,
            resolve_router=self.resolve,
            metrics_text=lambda: "# HELP calls_total Calls.\n# TYPE calls_total counter\ncalls_total 7\n",
            rng=Random(2),
            admission_timeout_s=admission_timeout_s,
            tls=self._tls,
        )

    async def start(self, dispatcher: LinkDispatcher, *, replicas: int = 1, timeout_s: float = 10.0) -> None:
        """Starts a dispatcher and waits until it can reach this many replicas."""
        await dispatcher.start()
        self._dispatchers.append(dispatcher)
        await until(lambda: sum(dispatcher.ready_replicas(pool) for pool in Pool) >= replicas, timeout_s)


_numbers = count()


def generation(max_tokens: int = 1000, *, prompt_tokens: int = 3) -> GenerationRequest:
    """Returns a request with a new id."""
    return GenerationRequest(f"request-{next(_numbers)}", tuple(range(prompt_tokens)), Stopping(max_tokens))


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Waits until the condition holds. Raises TimeoutError after a time that no healthy machine needs."""
    started_s = time.monotonic()
    while not condition():
        if time.monotonic() > started_s + timeout_s:
            raise TimeoutError(f"the condition does not hold after {timeout_s} s")
        await asyncio.sleep(0.002)


async def read_all(stream: RoutedStream) -> list[Delta]:
    """Returns all deltas to the end. Raises ServeError as the stream does."""
    deltas: list[Delta] = []
    while not (deltas and deltas[-1].end):
        deltas += await stream.next()
    return deltas


def text_of(deltas: Sequence[Delta]) -> str:
    """Returns the text of sequence 0."""
    return "".join(sequence.text for delta in deltas for sequence in delta.sequences if sequence.index == 0)


async def failure_of(reading: Awaitable[object]) -> ServeError:
    """Returns the ServeError that an awaitable raises, in bounded time."""
    with pytest.raises(ServeError) as caught:
        await asyncio.wait_for(reading, 20)
    return caught.value
