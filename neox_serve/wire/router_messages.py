"""Conversion of the messages between gateways and the router to core types and back."""

import math
from collections.abc import Iterable

from neox_serve.core.cluster import (
    ClusterView,
    Demand,
    GatewayView,
    Lease,
    Outstanding,
    Replica,
    ReplicaView,
    RequestTimings,
    ScalingView,
    Settled,
    TenantView,
    Terms,
)
from neox_serve.core.errors import FieldViolation, OwnedElsewhere, QuotaViolation, Reason, ServeError
from neox_serve.core.scheduling.admissions import Queued
from neox_serve.core.scheduling.cluster_state import Grant
from neox_serve.core.tenancy.quota import QuotaState, Reservation, Spent
from neox_serve.core.tenancy.tenants import PriorityClass, Quotas
from neox_serve.core.types import Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.wire.engine_messages import SCHEMA_VERSION
from neox_serve.wire.replica_messages import (
    POOL_FROM_PROTO,
    POOL_TO_PROTO,
    load_from_proto,
    load_to_proto,
    replica_from_proto,
    replica_to_proto,
)

# Gateway to router


def gateway_hello(
    gateway_id: str,
    leases: Iterable[Lease],
    reservations: Iterable[Reservation] = (),
    spent: Iterable[Spent] = (),
    gateway_link_address: str = "",
) -> pb.ConnectGatewayRequest:
    """Builds a gateway's first message: everything it has in flight, and its recent use of quotas."""
    hello = pb.GatewayHello(
        gateway_id=gateway_id,
        schema_version=SCHEMA_VERSION,
        gateway_link_address=gateway_link_address,
        leases=map(lease_to_proto, leases),
        reservations=map(reservation_to_proto, reservations),
        spent=[pb.Spent(tenant=one.tenant, at_s=one.at_s, requests=one.requests, tokens=one.tokens) for one in spent],
    )
    return pb.ConnectGatewayRequest(hello=hello)


def admit(lease_id: int, demand: Demand) -> pb.ConnectGatewayRequest:
    """Builds a request for a replica."""
    return pb.ConnectGatewayRequest(admit=demand_to_proto(lease_id, demand))


def demand_to_proto(lease_id: int, demand: Demand) -> pb.AdmitRequest:
    """Converts what a request needs."""
    terms = demand.terms
    return pb.AdmitRequest(
        lease_id=lease_id,
        pool=POOL_TO_PROTO[demand.pool],
        model=demand.model,
        prompt_tokens=demand.prompt_tokens,
        output_tokens=demand.output_tokens,
        excluded_replica_ids=demand.excluded,
        tenant=terms.tenant,
        weight=terms.weight,
        priority=terms.priority,
        time_left_s=terms.time_left_s if math.isfinite(terms.time_left_s) else None,
        waited_s=terms.waited_s,
        traceparent=terms.traceparent,
        idempotency_key=terms.idempotency_key,
        takes_over=terms.takes_over,
        adapter=demand.adapter or "",
        session=demand.session,
        blocks=demand.blocks,
        block_tokens=demand.block_tokens,
    )


def demand_from_proto(request: pb.AdmitRequest) -> Demand:
    """Converts what a request needs. Raises KeyError for an unknown pool and ValueError for an unknown priority class."""
    terms = Terms(
        tenant=request.tenant,
        weight=request.weight,
        priority=PriorityClass(request.priority),
        time_left_s=request.time_left_s if request.HasField("time_left_s") else math.inf,
        waited_s=request.waited_s,
        traceparent=request.traceparent,
        idempotency_key=request.idempotency_key,
        takes_over=request.takes_over,
    )
    return Demand(
        pool=POOL_FROM_PROTO[request.pool],
        model=request.model,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        excluded=tuple(request.excluded_replica_ids),
        terms=terms,
        adapter=request.adapter or None,
        session=request.session,
        blocks=tuple(request.blocks),
        block_tokens=request.block_tokens,
    )


def settlements(settled: Iterable[Settled]) -> pb.ConnectGatewayRequest:
    """Builds the report of leases that ended."""
    return pb.ConnectGatewayRequest(settlements=pb.Settlements(settlements=[_settlement(one) for one in settled]))


def _settlement(settled: Settled) -> pb.Settlement:
    return pb.Settlement(
        lease_id=settled.lease_id,
        cached_tokens=settled.cached_tokens,
        output_tokens=settled.output_tokens,
        first_token_s=settled.timings.first_token_s if settled.timings else None,
        per_token_s=settled.timings.per_token_s if settled.timings else None,
    )


def settled_from_proto(message: pb.Settlements) -> list[Settled]:
    """Converts the leases that ended."""
    return [Settled(one.lease_id, one.cached_tokens, one.output_tokens, _timings(one)) for one in message.settlements]


def _timings(one: pb.Settlement) -> RequestTimings | None:
    if not one.HasField("first_token_s"):
        return None
    return RequestTimings(one.first_token_s, one.per_token_s if one.HasField("per_token_s") else None)


def reserve(reservation: Reservation, quotas: Quotas) -> pb.ConnectGatewayRequest:
    """Builds a request for a reservation."""
    limits = {name: limit for name in Quotas.__slots__ if (limit := getattr(quotas, name)) is not None}
    return pb.ConnectGatewayRequest(reserve=pb.ReserveRequest(reservation=reservation_to_proto(reservation), quotas=pb.Quotas(**limits)))


def quotas_from_proto(message: pb.Quotas) -> Quotas:
    """Converts a tenant's limits."""
    return Quotas(**{field.name: limit for field, limit in message.ListFields()})


def settled_reservations(settled: Iterable[tuple[int, int]]) -> pb.ConnectGatewayRequest:
    """Builds the report of reservations that ended. settled: pairs of reservation id and tokens used."""
    each = [pb.SettledReservation(reservation_id=number, used_tokens=used) for number, used in settled]
    return pb.ConnectGatewayRequest(settled_reservations=pb.SettledReservations(settled=each))


def reservation_to_proto(reservation: Reservation) -> pb.Reservation:
    """Converts a reservation."""
    return pb.Reservation(reservation_id=reservation.reservation_id, tenant=reservation.tenant, tokens=reservation.tokens)


def reservation_from_proto(message: pb.Reservation) -> Reservation:
    """Converts a reservation."""
    return Reservation(message.reservation_id, message.tenant, message.tokens)


def spent_from_proto(message: pb.Spent) -> Spent:
    """Converts the use of quotas at one time."""
    return Spent(message.tenant, message.at_s, message.requests, message.tokens)


def estimate_request(estimate_id: int, demand: Demand) -> pb.ConnectGatewayRequest:
    """Builds a request for an estimate."""
    return pb.ConnectGatewayRequest(estimate=pb.EstimateRequest(estimate_id=estimate_id, admit=demand_to_proto(0, demand)))


def adopted(leases: Iterable[Lease]) -> pb.ConnectGatewayRequest:
    """Builds the report of leases that a gateway granted itself."""
    return pb.ConnectGatewayRequest(adopted=pb.Leases(leases=map(lease_to_proto, leases)))


def gateway_metrics(text: str) -> pb.ConnectGatewayRequest:
    """Builds the report of a gateway's metrics."""
    return pb.ConnectGatewayRequest(metrics=pb.MetricsText(text=text))


def view_request(view_id: int) -> pb.ConnectGatewayRequest:
    """Builds a request for the router's view."""
    return pb.ConnectGatewayRequest(view=pb.ViewRequest(view_id=view_id))


def drain_request(replica_id: str) -> pb.ConnectGatewayRequest:
    """Builds the request to drain a replica."""
    return pb.ConnectGatewayRequest(drain_replica_id=replica_id)


def lease_to_proto(lease: Lease) -> pb.Lease:
    """Converts a lease."""
    return pb.Lease(lease_id=lease.lease_id, replica_id=lease.replica_id, tokens=lease.tokens, cached_tokens=lease.cached_tokens)


def lease_from_proto(message: pb.Lease) -> Lease:
    """Converts a lease."""
    return Lease(message.lease_id, message.replica_id, message.tokens, message.cached_tokens)


# Router to gateway


def grant(lease_id: int, granted: Grant) -> pb.ConnectGatewayResponse:
    """Builds the reply that grants a replica."""
    response = pb.AdmitResponse(
        lease_id=lease_id, replica_id=granted.replica_id, cached_tokens=granted.cached_tokens or 0, explanation=granted.explanation
    )
    return pb.ConnectGatewayResponse(admit=response)


def queued(lease_id: int) -> pb.ConnectGatewayResponse:
    """Builds the reply that a request waits in the queue."""
    return pb.ConnectGatewayResponse(admit=pb.AdmitResponse(lease_id=lease_id, queued=True))


def owned_elsewhere(lease_id: int, address: str) -> pb.ConnectGatewayResponse:
    """Builds the reply that another gateway owns the request. address: host:port of its GatewayLinkService."""
    return pb.ConnectGatewayResponse(admit=pb.AdmitResponse(lease_id=lease_id, owner_address=address))


def preempt(lease_id: int) -> pb.ConnectGatewayResponse:
    """Builds the message that preempts a request."""
    return pb.ConnectGatewayResponse(preempt_lease_id=lease_id)


def refuse(lease_id: int, error: ServeError) -> pb.ConnectGatewayResponse:
    """Builds the reply that a request is refused."""
    return pb.ConnectGatewayResponse(admit=pb.AdmitResponse(lease_id=lease_id, refusal=refusal_to_proto(error)))


def reserved(reservation_id: int, error: ServeError | None) -> pb.ConnectGatewayResponse:
    """Builds the reply to a reservation request. error: why it is refused; None if it is reserved."""
    refusal = None if error is None else refusal_to_proto(error)
    return pb.ConnectGatewayResponse(reserve=pb.ReserveResponse(reservation_id=reservation_id, refusal=refusal))


def refusal_to_proto(error: ServeError) -> pb.Refusal:
    """Converts the error of a refusal."""
    return pb.Refusal(
        reason=error.reason.value,
        message=error.message,
        metadata=dict(error.metadata),
        retry_after_s=error.retry_after_s or 0.0,
        quota_violations=[pb.QuotaViolation(subject=one.subject, description=one.description) for one in error.quota_violations],
        field_violations=[pb.FieldViolation(field=one.field, description=one.description) for one in error.violations],
    )


def refusal_from_proto(refusal: pb.Refusal) -> ServeError:
    """Converts a refusal to its error. Raises ValueError for an unknown reason."""
    return ServeError(
        Reason(refusal.reason),
        refusal.message,
        dict(refusal.metadata),
        refusal.retry_after_s or None,
        tuple(FieldViolation(one.field, one.description) for one in refusal.field_violations),
        tuple(QuotaViolation(one.subject, one.description) for one in refusal.quota_violations),
    )


def admission_from_proto(response: pb.AdmitResponse) -> Grant | Queued | OwnedElsewhere | ServeError:
    """Returns the router's reply to an admission request. Raises ValueError for an unknown reason of a refusal."""
    match response.WhichOneof("outcome"):
        case "refusal":
            return refusal_from_proto(response.refusal)
        case "queued":
            return Queued()
        case "owner_address":
            return OwnedElsewhere(response.owner_address)
    return Grant(response.replica_id, response.cached_tokens, response.explanation)


def estimated(estimate_id: int, wait_s: float | None, state: QuotaState) -> pb.ConnectGatewayResponse:
    """Builds the reply to an estimate request. wait_s: None if unknown."""
    return pb.ConnectGatewayResponse(
        estimate=pb.EstimateResponse(
            estimate_id=estimate_id,
            wait_s=wait_s,
            minute_requests=state.minute_requests,
            minute_tokens=state.minute_tokens,
            day_tokens=state.day_tokens,
            reserved_requests=state.reserved_requests,
            reserved_tokens=state.reserved_tokens,
        )
    )


def estimate_from_proto(message: pb.EstimateResponse) -> tuple[float | None, QuotaState]:
    """Converts an estimate: the seconds that a request would wait, None if unknown, and what counts against its tenant's quotas."""
    state = QuotaState(
        message.minute_requests, message.minute_tokens, message.day_tokens, message.reserved_requests, message.reserved_tokens
    )
    return (message.wait_s if message.HasField("wait_s") else None), state


def replica_set(replicas: Iterable[Replica], waking: Iterable[Pool] = ()) -> pb.ConnectGatewayResponse:
    """Builds the list of all replicas. waking: pools that may have no replica until a request comes."""
    pools = sorted({POOL_TO_PROTO[pool] for pool in waking})
    return pb.ConnectGatewayResponse(replicas=pb.ReplicaSet(replicas=map(replica_to_proto, replicas), waking=pools))


def waking_from_proto(message: pb.ReplicaSet) -> frozenset[Pool]:
    """Returns the pools that may have no replica until a request comes."""
    return frozenset(POOL_FROM_PROTO[pool] for pool in message.waking)


def replicas_from_proto(message: pb.ReplicaSet) -> tuple[Replica, ...]:
    """Converts the list of all replicas."""
    return tuple(replica_from_proto(replica) for replica in message.replicas)


def view_to_proto(view_id: int, view: ClusterView) -> pb.ConnectGatewayResponse:
    """Builds the reply to a view request."""
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
    tenants = [pb.TenantView(**{name: getattr(each, name) for name in each.__slots__}) for each in view.tenants]
    scaling = [
        pb.ScalingView(pool=POOL_TO_PROTO[each.pool], wanted_replicas=each.wanted_replicas, reason=each.reason, alarm=each.alarm)
        for each in view.scaling
    ]
    found = pb.ClusterView(view_id=view_id, replicas=replicas, gateways=gateways, tenants=tenants, scaling=scaling)
    return pb.ConnectGatewayResponse(view=found)


def view_from_proto(message: pb.ClusterView) -> ClusterView:
    """Converts the router's view."""
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
    tenants = tuple(TenantView(**{name: getattr(each, name) for name in TenantView.__slots__}) for each in message.tenants)
    scaling = tuple(ScalingView(POOL_FROM_PROTO[each.pool], each.wanted_replicas, each.reason, each.alarm) for each in message.scaling)
    return ClusterView(replicas, gateways, from_router=True, tenants=tenants, scaling=scaling)
