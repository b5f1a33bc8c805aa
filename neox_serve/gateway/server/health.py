"""The health service (grpc.health.v1) and the conditions that keep the cluster from its full service.

A service is SERVING if every pool that it needs has a ready replica or starts one for the first request. The overall service name "" says
whether it makes sense to send calls to this gateway at all, so one ready pool is enough for it: a readiness probe must not remove a gateway
because one of two pools restarts. A lost router stops no service; it is reported as a condition in the trailing metadata.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from neox_serve.core.types import Pool
from neox_serve.gateway.dispatch.protocol import Dispatcher
from neox_serve.v1 import admin_service_pb2, batch_service_pb2, inference_service_pb2, model_service_pb2, ops_service_pb2, token_service_pb2

OVERALL = ""
"""Service name that stands for the whole gateway."""
CONDITION_KEY = "neox-condition"
"""Trailing metadata of `Check`: one entry for each condition, with its reason."""

ROUTER_DOWN = "ROUTER_DOWN"
NO_READY_REPLICA = "NO_READY_REPLICA"
DRAINING = "DRAINING"


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that keeps the cluster from its full service."""

    reason: str
    """Stable identifier for programs."""
    message: str
    """Explanation for people."""


def conditions(dispatcher: Dispatcher, pools: tuple[Pool, ...], *, draining: bool) -> list[Condition]:
    """Returns all present conditions as this gateway knows them; none if everything works."""
    found: list[Condition] = []
    if not dispatcher.router_connected:
        found.append(Condition(ROUTER_DOWN, "the router does not answer; requests use what this gateway knows of the replicas"))
    found += [
        Condition(NO_READY_REPLICA, f"no {pool} replica accepts requests; calls that need one are refused until one does")
        for pool in pools
        if dispatcher.ready_replicas(pool) == 0 and not dispatcher.may_wake(pool)
    ]
    if draining:
        found.append(Condition(DRAINING, "this gateway finishes the calls in flight and accepts no new ones"))
    return found


def service_name(file: Any, service: str) -> str:
    """Returns the full name of a service, from its generated module."""
    return str(file.DESCRIPTOR.services_by_name[service].full_name)


INFERENCE = service_name(inference_service_pb2, "InferenceService")
TOKENS = service_name(token_service_pb2, "TokenService")
MODELS = service_name(model_service_pb2, "ModelService")
ADMIN = service_name(admin_service_pb2, "AdminService")
OPS = service_name(ops_service_pb2, "OpsService")
BATCH = service_name(batch_service_pb2, "BatchService")


def serving(ready: Mapping[Pool, bool]) -> dict[str, bool]:
    """Returns for each service whether it can be served, given for each enabled pool whether it accepts requests."""
    return {
        OVERALL: any(ready.values()),
        INFERENCE: all(ready.values()),
        f"{INFERENCE}/Generate": ready.get(Pool.GENERATION, False),
        f"{INFERENCE}/StreamGenerate": ready.get(Pool.GENERATION, False),
        f"{INFERENCE}/Embed": ready.get(Pool.EMBEDDING, False),
        TOKENS: True,
        MODELS: True,
        ADMIN: True,
        OPS: True,
        BATCH: True,
    }


Context = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


class Health(health.aio.HealthServicer):
    """The health service, which also reports conditions."""

    def __init__(self, conditions: Callable[[], list[Condition]]) -> None:
        super().__init__()
        self._conditions = conditions
        self._known: dict[str, bool] = {}

    async def update(self, now: Mapping[str, bool]) -> None:
        """Reports the services whose state has changed to their watchers."""
        for service, is_serving in now.items():
            if self._known.get(service) is not is_serving:
                self._known[service] = is_serving
                await self.set(service, _STATUS[is_serving])

    async def Check(  # noqa: N802 - the name is the RPC's
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Returns the state of a service, with the conditions in the trailing metadata."""
        context.set_trailing_metadata(tuple((CONDITION_KEY, condition.reason) for condition in self._conditions()))
        return await super().Check(request, context)


_STATUS = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}
