"""OpsService: the state of the cluster, and actions of operators."""

from collections.abc import Callable, Mapping

import structlog

import neox_serve
from neox_serve.core.cluster import ClusterView, ReplicaPhase, ReplicaView
from neox_serve.core.errors import Reason, ServeError, invalid
from neox_serve.core.scheduling.refusal import NOT_READY_RETRY_S
from neox_serve.core.types import Pool
from neox_serve.gateway.dispatch.protocol import Dispatcher
from neox_serve.gateway.server.calls import Call
from neox_serve.gateway.server.health import Condition
from neox_serve.v1 import ops_service_pb2
from neox_serve.wire.public_messages import duration

log = structlog.get_logger(__name__)

_VIEW_TIMEOUT_S = 0.5
"""Far longer than a healthy router needs, and short enough for a table that is refreshed every second."""

_POOL_KINDS: Mapping[Pool, ops_service_pb2.PoolKind.ValueType] = {
    Pool.GENERATION: ops_service_pb2.POOL_KIND_GENERATION,
    Pool.EMBEDDING: ops_service_pb2.POOL_KIND_EMBEDDING,
}
_STATES: Mapping[ReplicaPhase, ops_service_pb2.ReplicaState.ValueType] = {
    ReplicaPhase.READY: ops_service_pb2.REPLICA_STATE_READY,
    ReplicaPhase.DRAINING: ops_service_pb2.REPLICA_STATE_DRAINING,
    ReplicaPhase.UNHEALTHY: ops_service_pb2.REPLICA_STATE_UNHEALTHY,
}


class Ops:
    """Implements the service."""

    def __init__(
        self, *, gateway_id: str, pools: tuple[Pool, ...], dispatcher: Dispatcher, conditions: Callable[[], list[Condition]]
    ) -> None:
        self._gateway_id = gateway_id
        self._pools = pools
        self._dispatcher = dispatcher
        self._conditions = conditions

    async def drain_replica(self, call: Call, message: ops_service_pb2.DrainReplicaRequest) -> ops_service_pb2.DrainReplicaResponse:
        """Asks the router to drain a replica. Raises ServeError if there is no such replica, or the router does not respond."""
        _check_drainable(await self._dispatcher.cluster_view(_VIEW_TIMEOUT_S), message.replica_id)
        log.info("replica_drain_requested", replica_id=message.replica_id, actor=call.principal.actor)
        self._dispatcher.drain_replica(message.replica_id)
        return ops_service_pb2.DrainReplicaResponse()

    async def get_cluster_status(
        self, _call: Call, _message: ops_service_pb2.GetClusterStatusRequest
    ) -> ops_service_pb2.GetClusterStatusResponse:
        """Returns the state of the cluster as far as it is known."""
        view = await self._dispatcher.cluster_view(_VIEW_TIMEOUT_S)
        return ops_service_pb2.GetClusterStatusResponse(
            version=neox_serve.__version__,
            gateway_id=self._gateway_id,
            pools=[_pool(pool, view) for pool in self._pools],
            replicas=[_replica(replica) for replica in view.replicas],
            gateways=[
                ops_service_pb2.GatewayStatus(
                    gateway_id=gateway.gateway_id, requests_in_flight=gateway.requests_in_flight, age=duration(gateway.age_s)
                )
                for gateway in view.gateways
            ],
            tenants=[ops_service_pb2.TenantStatus(**{name: getattr(tenant, name) for name in tenant.__slots__}) for tenant in view.tenants],
            conditions=[ops_service_pb2.Condition(reason=condition.reason, message=condition.message) for condition in self._conditions()],
        )


def _check_drainable(view: ClusterView, replica_id: str) -> None:
    """Raises ServeError if the replica cannot be drained."""
    if not view.from_router:
        raise ServeError(Reason.NO_READY_REPLICA, "the router does not respond, so no replica can be drained", {}, NOT_READY_RETRY_S)
    if replica_id not in {replica.replica.replica_id for replica in view.replicas}:
        raise invalid("replica_id", f"got {replica_id!r}, must be the id of a replica")


def _pool(pool: Pool, view: ClusterView) -> ops_service_pb2.PoolStatus:
    replicas = [replica for replica in view.replicas if replica.replica.pool is pool]
    scaling = next((scaling for scaling in view.scaling if scaling.pool is pool), None)
    return ops_service_pb2.PoolStatus(
        draining_replicas=sum(replica.replica.phase is ReplicaPhase.DRAINING for replica in replicas),
        wanted_replicas=scaling.wanted_replicas if scaling else None,
        scaling_reason=scaling.reason if scaling else "",
        scaling_alarm=scaling.alarm if scaling else False,
        kind=_POOL_KINDS[pool],
        ready_replicas=sum(replica.ready for replica in replicas),
        requests_in_flight=sum(replica.outstanding.requests for replica in replicas),
        outstanding_tokens=sum(replica.outstanding.tokens for replica in replicas),
    )


def _replica(view: ReplicaView) -> ops_service_pb2.ReplicaStatus:
    return ops_service_pb2.ReplicaStatus(
        replica_id=view.replica.replica_id,
        pool=_POOL_KINDS[view.replica.pool],
        model=view.replica.model,
        state=ops_service_pb2.REPLICA_STATE_LOST if view.lost else _STATES[view.replica.phase],
        running_requests=view.load.running_requests,
        waiting_requests=view.load.waiting_requests,
        outstanding_tokens=view.outstanding.tokens,
        kv_usage_fraction=view.load.kv_usage_fraction,
        output_tokens_per_second=view.load.output_tokens_per_second,
        age=duration(view.age_s),
    )
