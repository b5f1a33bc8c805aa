"""The router's admission service: takes gateways' requests for replicas to `core.scheduling.admissions`, with spans and metrics."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from opentelemetry.trace import Span

from neox_serve.core.cluster import Demand, RequestKey, Settled
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.scheduling.admissions import Admissions, Notification, Outcome, Preempt, Queued
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.router.metrics import RouterMetrics
from neox_serve.telemetry.tracing import Tracing, end
from neox_serve.wire import router_messages as wire

_HOLD_S = 1.0
"""Longest time that a request is held for a replica that may register at any moment. Gateways wait longer than this for a reply."""

Notify = Callable[[str, pb.ConnectGatewayResponse], None]
"""Sends a message to the gateway with this id, or drops it if that gateway is not connected: it asks again when it is back."""


@dataclass(frozen=True, slots=True)
class _HeldRequest:
    """A request that is held for a replica that may register at any moment."""

    demand: Demand
    connection: int
    arrived_s: float


class AdmissionService:
    """Replies to gateways' requests for replicas.

    clock: monotonic seconds. notify: sends a message to a gateway. before_grant: called with a replica's id before a gateway is granted it.
    """

    def __init__(
        self,
        state: ClusterState,
        admissions: Admissions,
        *,
        clock: Callable[[], float],
        metrics: RouterMetrics,
        tracing: Tracing,
        notify: Notify,
        before_grant: Callable[[str], None],
    ) -> None:
        self._state = state
        self._clock = clock
        self._metrics = metrics
        self._tracing = tracing
        self._notify = notify
        self._before_grant = before_grant
        self._held: dict[RequestKey, _HeldRequest] = {}
        self._spans: dict[RequestKey, Span] = {}
        self.admissions = admissions

    def admit(self, key: RequestKey, demand: Demand, connection: int) -> None:
        """Grants, queues, refuses or holds a request. connection: the number of the gateway's stream."""
        self._begin_span(key, demand)
        self._admit(key, _HeldRequest(demand, connection, self._clock()))

    def settle(self, gateway_id: str, settled: Iterable[Settled]) -> None:
        """Ends requests that have finished or were withdrawn, and grants what has become free."""
        now_s = self._clock()
        for one in settled:
            key = (gateway_id, one.lease_id)
            self._held.pop(key, None)
            if (span := self._spans.pop(key, None)) is not None:
                end(span, Reason.CANCELLED.value)
            self.admissions.settle(gateway_id, one, now_s)
        self._grant_next()

    def try_again(self) -> None:
        """Admits held and queued requests if a replica has registered or become free."""
        held, self._held = self._held, {}
        for key, request in held.items():
            self._admit(key, request)
        self._grant_next()

    def expire(self) -> None:
        """Refuses queued requests that have waited too long."""
        self._leave_queue(self.admissions.expire(self._clock()))

    def drop(self, gateway_id: str, connection: int, *, last: bool) -> None:
        """Forgets the requests of a stream that ended, because its gateway goes on without a reply.

        last: whether the gateway has no other stream.
        """
        self._held = {key: request for key, request in self._held.items() if request.connection != connection}
        if last:
            self.admissions.drop_gateway_queue(gateway_id)

    def _admit(self, key: RequestKey, request: _HeldRequest) -> None:
        now_s, started_s = self._clock(), time.perf_counter()
        notifications = self.admissions.admit(*key, request.demand, now_s)
        outcome = notifications[0].outcome
        if isinstance(outcome, ServeError) and self._may_hold(outcome, request, now_s):
            self._held[key] = request
            return
        self._notify_all(notifications)
        self._metrics.admitted(_label(outcome), time.perf_counter() - started_s)

    def _may_hold(self, refusal: ServeError, request: _HeldRequest, now_s: float) -> bool:
        in_time = refusal.reason is Reason.NO_READY_REPLICA and now_s < request.arrived_s + _HOLD_S
        return in_time and self._state.may_become_ready(request.demand, now_s)

    def _grant_next(self) -> None:
        self._leave_queue(self.admissions.grant_next(self._clock()))

    def _leave_queue(self, notifications: list[Notification]) -> None:
        for notification in notifications:
            self._metrics.left_queue(_label(notification.outcome))
        self._notify_all(notifications)

    def _notify_all(self, notifications: Iterable[Notification]) -> None:
        for notification in notifications:
            self._end_span(notification)
            if isinstance(notification.outcome, Grant):
                self._before_grant(notification.outcome.replica_id)
            self._notify(notification.gateway_id, _message(notification))

    def _begin_span(self, key: RequestKey, demand: Demand) -> None:
        if demand.terms.traceparent and key not in self._spans:
            facts = {"neox.tenant": demand.terms.tenant, "neox.pool": demand.pool.value}
            self._spans[key] = self._tracing.begin("router.admit", demand.terms.traceparent, facts)

    def _end_span(self, notification: Notification) -> None:
        """Ends the span of a request if the notification is its final one."""
        outcome = notification.outcome
        if not self._spans or isinstance(outcome, Queued | Preempt):
            return
        if (span := self._spans.pop((notification.gateway_id, notification.lease_id), None)) is not None:
            refused = outcome.reason.value if isinstance(outcome, ServeError) else ""
            end(span, refused, replica_id=outcome.replica_id if isinstance(outcome, Grant) else "")


def _label(outcome: Outcome) -> str:
    """Returns the value of the metrics' label "outcome"."""
    match outcome:
        case ServeError():
            return outcome.reason.value
        case Grant():
            return "granted"
        case Queued():
            return "queued"
        case Preempt():
            return "preempted"


def _message(notification: Notification) -> pb.ConnectGatewayResponse:
    lease_id, outcome = notification.lease_id, notification.outcome
    match outcome:
        case Grant():
            return wire.grant(lease_id, outcome)
        case ServeError():
            return wire.refuse(lease_id, outcome)
        case Queued():
            return wire.queued(lease_id)
        case Preempt():
            return wire.preempt(lease_id)
