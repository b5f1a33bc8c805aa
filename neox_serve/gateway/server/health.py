"""grpc.health.v1: which services can be served now. A service is SERVING where every pool that it needs has a ready replica, or
will have one for the first request.

The overall name "" says whether sending calls to this gateway makes sense at all, so one ready pool is enough for it: a readiness probe
must not take a gateway out because one pool of two restarts. A router that is down stops nothing; the trailing metadata says so.
"""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from neox_serve.core.types import Pool
from neox_serve.gateway.server.conditions import Condition
from neox_serve.v1 import admin_service_pb2, batch_service_pb2, inference_service_pb2, model_service_pb2, ops_service_pb2, token_service_pb2

OVERALL = ""
CONDITION_KEY = "neox-condition"


def service_name(file: Any, service: str) -> str:
    """A service's full name, from its generated module."""
    return str(file.DESCRIPTOR.services_by_name[service].full_name)


INFERENCE = service_name(inference_service_pb2, "InferenceService")
TOKENS = service_name(token_service_pb2, "TokenService")
MODELS = service_name(model_service_pb2, "ModelService")
ADMIN = service_name(admin_service_pb2, "AdminService")
OPS = service_name(ops_service_pb2, "OpsService")
BATCH = service_name(batch_service_pb2, "BatchService")


def serving(ready: Mapping[Pool, bool]) -> dict[str, bool]:
    """Whether each service can be served, from whether each enabled pool takes requests."""
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
    """The health service, which also says what is amiss."""

    def __init__(self, conditions: Callable[[], list[Condition]]) -> None:
        super().__init__()
        self._conditions = conditions
        self._known: dict[str, bool] = {}

    async def update(self, now: Mapping[str, bool]) -> None:
        """Tells the watchers of the services whose state has changed."""
        for service, is_serving in now.items():
            if self._known.get(service) is not is_serving:
                self._known[service] = is_serving
                await self.set(service, _STATUS[is_serving])

    async def Check(  # noqa: N802 - the name is the RPC's
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The state of a service; conditions in the trailing metadata."""
        context.set_trailing_metadata(tuple((CONDITION_KEY, condition.reason) for condition in self._conditions()))
        return await super().Check(request, context)


_STATUS = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}
