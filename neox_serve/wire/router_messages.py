"""Router link messages to core types and back."""

from collections.abc import Iterable

from neox_serve.core.cluster import (
    ClusterView,
    Demand,
    GatewayView,
    Lease,
    Outstanding,
    Replica,
    ReplicaLoad,
    ReplicaPhase,
    ReplicaView,
)
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire.engine_messages import SCHEMA_VERSION

_POOL_TO_PROTO = {Pool.GENERATION: pb.POOL_GENERATION, Pool.EMBEDDING: pb.POOL_EMBEDDING}
_POOL_FROM_PROTO = {value: key for key, value in _POOL_TO_PROTO.items()}
_PHASE_TO_PROTO = {
    ReplicaPhase.READY: pb.REPLICA_PHASE_READY,
    ReplicaPhase.DRAINING: pb.REPLICA_PHASE_DRAINING,
    ReplicaPhase.UNHEALTHY: pb.REPLICA_PHASE_UNHEALTHY,
}
_PHASE_FROM_PROTO = {value: key for key, value in _PHASE_TO_PROTO.items()}


# Gateway to router


def gateway_hello(gateway_id: str, leases: Iterable[Lease]) -> pb.ConnectGatewayRequest:
    """A gateway's first message: all it has in flight."""
    hello = pb.GatewayHello(gateway_id=gateway_id, schema_version=SCHEMA_VERSION, leases=map(lease_to_proto, leases))
    return pb.ConnectGatewayRequest(hello=hello)


def admit(lease_id: int, demand: Demand) -> pb.ConnectGatewayRequest:
    """Asks for a replica."""
    request = pb.AdmitRequest(
        lease_id=lease_id,
        pool=_POOL_TO_PROTO[demand.pool],
        model=demand.model,
        prompt_tokens=demand.prompt_tokens,
        output_tokens=demand.output_tokens,
        excluded_replica_ids=demand.excluded,
    )
    return pb.ConnectGatewayRequest(admit=request)


def demand_from_proto(request: pb.AdmitRequest) -> Demand:
    """What a request asks for. Raises KeyError for an unknown pool."""
    return Demand(
        pool=_POOL_FROM_PROTO[request.pool],
        model=request.model,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        excluded=tuple(request.excluded_replica_ids),
    )


def settlements(lease_ids: Iterable[int]) -> pb.ConnectGatewayRequest:
    """Leases that ended."""
    return pb.ConnectGatewayRequest(settlements=pb.Settlements(lease_ids=lease_ids))


def adopted(leases: Iterable[Lease]) -> pb.ConnectGatewayRequest:
    """Leases that a gateway granted itself."""
    return pb.ConnectGatewayRequest(adopted=pb.Leases(leases=map(lease_to_proto, leases)))


def gateway_metrics(text: str) -> pb.ConnectGatewayRequest:
    """A gateway's metrics."""
    return pb.ConnectGatewayRequest(metrics=pb.MetricsText(text=text))


def view_request(view_id: int) -> pb.ConnectGatewayRequest:
    """Asks for the router's view."""
    return pb.ConnectGatewayRequest(view=pb.ViewRequest(view_id=view_id))


def lease_to_proto(lease: Lease) -> pb.Lease:
    """A request's claim on a replica."""
    return pb.Lease(lease_id=lease.lease_id, replica_id=lease.replica_id, tokens=lease.tokens)


def lease_from_proto(message: pb.Lease) -> Lease:
    """A request's claim on a replica."""
    return Lease(message.lease_id, message.replica_id, message.tokens)


# Router to gateway


def grant(lease_id: int, replica_id: str) -> pb.ConnectGatewayResponse:
    """The replica that takes a request."""
    return pb.ConnectGatewayResponse(admit=pb.AdmitResponse(lease_id=lease_id, replica_id=replica_id))


def refuse(lease_id: int, error: ServeError) -> pb.ConnectGatewayResponse:
    """Why a request is not admitted."""
    refusal = pb.Refusal(
        reason=error.reason.value,
        message=error.message,
        metadata=dict(error.metadata),
        retry_after_s=error.retry_after_s or 0.0,
    )
    return pb.ConnectGatewayResponse(admit=pb.AdmitResponse(lease_id=lease_id, refusal=refusal))


def admission_from_proto(response: pb.AdmitResponse) -> str | ServeError:
    """The replica's id, or why there is none."""
    if response.HasField("refusal"):
        refusal = response.refusal
        return ServeError(Reason(refusal.reason), refusal.message, dict(refusal.metadata), refusal.retry_after_s or None)
    return response.replica_id


def replica_set(replicas: Iterable[Replica]) -> pb.ConnectGatewayResponse:
    """All replicas that the router knows."""
    return pb.ConnectGatewayResponse(replicas=pb.ReplicaSet(replicas=map(replica_to_proto, replicas)))


def replicas_from_proto(message: pb.ReplicaSet) -> tuple[Replica, ...]:
    """All replicas that the router knows."""
    return tuple(replica_from_proto(replica) for replica in message.replicas)


def replica_to_proto(replica: Replica) -> pb.Replica:
    """A replica that gateways may connect to."""
    return pb.Replica(
        replica_id=replica.replica_id,
        pool=_POOL_TO_PROTO[replica.pool],
        model=replica.model,
        address=replica.address,
        phase=_PHASE_TO_PROTO[replica.phase],
        max_requests=replica.max_requests,
    )


def replica_from_proto(message: pb.Replica) -> Replica:
    """A replica that gateways may connect to. Raises KeyError or ValueError where the message holds no valid one."""
    return Replica(
        replica_id=message.replica_id,
        pool=_POOL_FROM_PROTO[message.pool],
        model=message.model,
        address=message.address,
        max_requests=message.max_requests,
        phase=_PHASE_FROM_PROTO[message.phase],
    )


def view_to_proto(view_id: int, view: ClusterView) -> pb.ConnectGatewayResponse:
    """The router's view, as the answer to a request for it."""
    replicas = [
        pb.ReplicaView(
            replica=replica_to_proto(each.replica),
            load=load_to_proto(each.load),
            requests_in_flight=each.outstanding.requests,
            outstanding_tokens=each.outstanding.tokens,
            age_s=each.age_s,
            lost=each.lost,
        )
        for each in view.replicas
    ]
    gateways = [
        pb.GatewayView(gateway_id=each.gateway_id, requests_in_flight=each.requests_in_flight, age_s=each.age_s) for each in view.gateways
    ]
    return pb.ConnectGatewayResponse(view=pb.ClusterView(view_id=view_id, replicas=replicas, gateways=gateways))


def view_from_proto(message: pb.ClusterView) -> ClusterView:
    """The router's view."""
    replicas = tuple(
        ReplicaView(
            replica_from_proto(each.replica),
            load_from_proto(each.load),
            Outstanding(each.requests_in_flight, each.outstanding_tokens),
            each.age_s,
            each.lost,
        )
        for each in message.replicas
    )
    gateways = tuple(GatewayView(each.gateway_id, each.requests_in_flight, each.age_s) for each in message.gateways)
    return ClusterView(replicas, gateways, from_router=True)


# Replica to router


def replica_hello(replica: Replica) -> pb.ConnectReplicaRequest:
    """A replica's first message, with the phase it is in."""
    return pb.ConnectReplicaRequest(hello=pb.ReplicaHello(schema_version=SCHEMA_VERSION, replica=replica_to_proto(replica)))


def replica_load(load: ReplicaLoad) -> pb.ConnectReplicaRequest:
    """A replica's load."""
    return pb.ConnectReplicaRequest(load=load_to_proto(load))


def replica_phase(phase: ReplicaPhase) -> pb.ConnectReplicaRequest:
    """A replica's phase."""
    return pb.ConnectReplicaRequest(phase=_PHASE_TO_PROTO[phase])


def phase_from_proto(phase: pb.ReplicaPhase.ValueType) -> ReplicaPhase:
    """A replica's phase. Raises KeyError for an unknown one."""
    return _PHASE_FROM_PROTO[phase]


def replica_metrics(text: str) -> pb.ConnectReplicaRequest:
    """A replica's metrics."""
    return pb.ConnectReplicaRequest(metrics=pb.MetricsText(text=text))


def load_to_proto(load: ReplicaLoad) -> pb.ReplicaLoad:
    """A replica's load."""
    return pb.ReplicaLoad(
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        kv_usage_fraction=load.kv_usage_fraction,
        output_tokens_per_second=load.output_tokens_per_second,
    )


def load_from_proto(message: pb.ReplicaLoad) -> ReplicaLoad:
    """A replica's load."""
    return ReplicaLoad(
        message.running_requests,
        message.waiting_requests,
        message.kv_usage_fraction,
        message.output_tokens_per_second,
    )


def registered() -> pb.ConnectReplicaResponse:
    """Tells a replica that its hello was accepted."""
    return pb.ConnectReplicaResponse(registered=True)
