"""The router's replies to requests for replicas: who is told what, and what is held for a replica that may return."""

from random import Random

from neox_serve.core.cluster import Demand, Replica, Settled, Terms
from neox_serve.core.scheduling.admissions import Admissions
from neox_serve.core.scheduling.cluster_state import ClusterState
from neox_serve.core.scheduling.fair_queue import QueueLimits
from neox_serve.core.types import Pool
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.router.admissions import AdmissionService
from neox_serve.router.metrics import RouterMetrics
from neox_serve.settings.cluster import TracingSettings
from neox_serve.telemetry.tracing import Tracing

REPLICA = Replica("r", Pool.GENERATION, "m", "r:1", 1)
DEMAND = Demand(Pool.GENERATION, "m", 10, 10, terms=Terms("a"))
STREAM = 1
"""Number of the gateway's stream."""
GRANTED = "replica_id"
"""The field that a grant sets."""


class Router:
    """An admission service in virtual time with one gateway, "g", and what it has told that gateway."""

    def __init__(self, *, max_wait_s: float = 30.0, replica: bool = True) -> None:
        self.now_s = 0.0
        self.state = ClusterState(grace_s=3.0, started_s=-100.0, rng=Random(0))
        self.state.connect_gateway("g", (), STREAM, 0.0)
        if replica:
            self.state.connect_replica(REPLICA, STREAM, 0.0)
        self.announced: list[str] = []
        self.sent: list[tuple[int, str]] = []
        self.service = AdmissionService(
            self.state,
            Admissions(self.state, QueueLimits(max_requests=4, max_wait_s=max_wait_s)),
            clock=lambda: self.now_s,
            metrics=RouterMetrics(),
            tracing=Tracing(TracingSettings(), "router"),
            notify=self._record,
            before_grant=self.announced.append,
        )

    def _record(self, gateway_id: str, message: pb.ConnectGatewayResponse) -> None:
        assert gateway_id == "g"
        if message.HasField("preempt_lease_id"):
            self.sent.append((message.preempt_lease_id, "preempt"))
        else:
            self.sent.append((message.admit.lease_id, str(message.admit.WhichOneof("outcome"))))

    def admit(self, lease_id: int, demand: Demand = DEMAND) -> None:
        """The gateway asks for a replica."""
        self.service.admit(("g", lease_id), demand, STREAM)


def test_grant_is_sent_after_the_replica_was_announced() -> None:
    router = Router()
    router.admit(1)
    assert (router.sent, router.announced) == ([(1, GRANTED)], ["r"])


def test_queued_request_is_granted_when_the_running_one_settles() -> None:
    router = Router()
    router.admit(1)
    router.admit(2)
    assert router.sent == [(1, GRANTED), (2, "queued")]
    router.service.settle("g", [Settled(1)])
    assert router.sent[2:] == [(2, GRANTED)]


def test_queued_request_that_waits_too_long_is_refused() -> None:
    router = Router(max_wait_s=5.0)
    router.admit(1)
    router.admit(2)
    router.now_s = 4.0
    router.service.expire()
    assert router.sent[2:] == []
    router.now_s = 6.0
    router.service.expire()
    assert router.sent[2:] == [(2, "refusal")]


def test_request_is_held_while_a_lost_replica_may_return_and_granted_when_it_does() -> None:
    router = Router()
    router.state.disconnect_replica("r", STREAM, 0.0)
    router.admit(1)
    assert router.sent == []
    router.state.connect_replica(REPLICA, 2, 0.5)
    router.service.try_again()
    assert router.sent == [(1, GRANTED)]


def test_held_request_is_refused_after_a_second() -> None:
    router = Router()
    router.state.disconnect_replica("r", STREAM, 0.0)
    router.admit(1)
    router.now_s = 0.9
    router.service.try_again()
    assert router.sent == []
    router.now_s = 1.0
    router.service.try_again()
    assert router.sent == [(1, "refusal")]


def test_withdrawn_held_request_is_not_granted_later() -> None:
    router = Router()
    router.state.disconnect_replica("r", STREAM, 0.0)
    router.admit(1)
    router.service.settle("g", [Settled(1)])
    router.state.connect_replica(REPLICA, 2, 0.5)
    router.service.try_again()
    assert router.sent == []


def test_requests_of_a_stream_that_ended_get_no_reply() -> None:
    router = Router()
    router.admit(1)
    router.admit(2)
    router.service.drop("g", STREAM, last=True)
    router.service.settle("g", [Settled(1)])
    assert router.sent == [(1, GRANTED), (2, "queued")]


def test_unknown_model_is_refused_at_once() -> None:
    router = Router()
    router.admit(1, Demand(Pool.GENERATION, "another", 10, 10, terms=Terms("a")))
    assert router.sent == [(1, "refusal")]
