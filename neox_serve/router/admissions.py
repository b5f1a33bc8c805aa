"""The router's desk for admissions: gateways' requests for replicas, on core.scheduling.admissions, with their spans and metrics."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from opentelemetry.trace import Span

from neox_serve.core.cluster import Demand, Settled
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.scheduling.admissions import Admissions, Notification, Preempt, Queued
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.router.metrics import RouterMetrics
from neox_serve.telemetry.tracing import Tracing, end
from neox_serve.wire import router_messages as wire

_HOLD_S = 1.0
"""Longest time that a request waits here for a replica that may come any moment; less than gateways wait for an answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request for admission. connection: of the stream it came on. came_s: when."""

    gateway_id: str
    connection: int
    lease_id: int
    demand: Demand
    came_s: float


Tell = Callable[[str, pb.ConnectGatewayResponse], None]
"""Gives a message to a gateway, where it is connected; one that is not asks again when it is back."""


class AdmissionService:
    """Answers for replicas. before_grant: called with each replica that a gateway is about to hear of."""

    def __init__(
        self,
        state: ClusterState,
        admissions: Admissions,
        *,
        clock: Callable[[], float],
        metrics: RouterMetrics,
        tracing: Tracing,
        tell: Tell,
        before_grant: Callable[[str], None],
    ) -> None:
        self._state = state
        self._clock = clock
        self._metrics = metrics
        self._tracing = tracing
        self._tell = tell
        self._before_grant = before_grant
        self._held: dict[tuple[str, int], Request] = {}
        self._spans: dict[tuple[str, int], Span] = {}
        self.admissions = admissions

    def admit(self, request: Request) -> None:
        """Answers, or holds the request where a replica may come any moment."""
        now_s, decided_s = self._clock(), time.perf_counter()
        key = (request.gateway_id, request.lease_id)
        self._begin_span(key, request.demand)
        answers = self.admissions.ask(*key, request.demand, now_s)
        first = answers[0].outcome
        if isinstance(first, ServeError) and self._may_wait(first, request, now_s):
            self._held[key] = request
            return
        self._tell_all(answers)
        self._metrics.admitted(_outcome(first), time.perf_counter() - decided_s)

    def settle(self, gateway_id: str, settled: Iterable[Settled]) -> None:
        """Requests that ended, or were given up."""
        now_s = self._clock()
        for one in settled:
            key = (gateway_id, one.lease_id)
            self._held.pop(key, None)
            if (span := self._spans.pop(key, None)) is not None:
                end(span, Reason.CANCELLED.value)
            self.admissions.settle(gateway_id, one, now_s)
        self._grant_next()

    def try_again(self) -> None:
        """A replica may have come, or come free."""
        held, self._held = self._held, {}
        for request in held.values():
            self.admit(request)
        self._grant_next()

    def expire(self) -> None:
        """Refuses those whose time is over."""
        self._leave_queue(self.admissions.expire(self._clock()))

    def drop(self, gateway_id: str, connection: int, *, last: bool) -> None:
        """Forgets the requests of a stream that ended: its gateway has gone on without an answer. last: it has no other stream."""
        self._held = {key: request for key, request in self._held.items() if request.connection != connection}
        if last:
            self.admissions.drop_gateway_queue(gateway_id)

    def _may_wait(self, refusal: ServeError, request: Request, now_s: float) -> bool:
        in_time = refusal.reason is Reason.NO_READY_REPLICA and now_s < request.came_s + _HOLD_S
        return in_time and self._state.may_become_ready(request.demand, now_s)

    def _grant_next(self) -> None:
        self._leave_queue(self.admissions.next(self._clock()))

    def _leave_queue(self, answers: list[Notification]) -> None:
        for answer in answers:
            self._metrics.left_queue(_outcome(answer.outcome))
        self._tell_all(answers)

    def _tell_all(self, answers: Iterable[Notification]) -> None:
        for answer in answers:
            self._end_span(answer)
            if isinstance(answer.outcome, Grant):
                self._before_grant(answer.outcome.replica_id)
            self._tell(answer.gateway_id, _message(answer))

    def _begin_span(self, key: tuple[str, int], demand: Demand) -> None:
        if demand.terms.traceparent and key not in self._spans:
            facts = {"neox.tenant": demand.terms.tenant, "neox.pool": demand.pool.value}
            self._spans[key] = self._tracing.begin("router.admit", demand.terms.traceparent, facts)

    def _end_span(self, answer: Notification) -> None:
        """Ends the span of a request that has its final answer."""
        if not self._spans or isinstance(answer.outcome, Queued | Preempt):
            return
        if (span := self._spans.pop((answer.gateway_id, answer.lease_id), None)) is not None:
            refused = answer.outcome.reason.value if isinstance(answer.outcome, ServeError) else ""
            end(span, refused, replica_id=answer.outcome.replica_id if isinstance(answer.outcome, Grant) else "")


def _outcome(what: Grant | Queued | Preempt | ServeError) -> str:
    """What became of a request, for metrics."""
    match what:
        case ServeError():
            return what.reason.value
        case Grant():
            return "granted"
        case Queued():
            return "queued"
    return "asked_to_give_way"


def _message(answer: Notification) -> pb.ConnectGatewayResponse:
    match answer.outcome:
        case Grant():
            return wire.grant(answer.lease_id, answer.outcome)
        case ServeError() as error:
            return wire.refuse(answer.lease_id, error)
        case Queued():
            return wire.queued(answer.lease_id)
    return wire.preempt(answer.lease_id)
