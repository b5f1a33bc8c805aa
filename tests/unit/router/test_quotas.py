"""The router's replies to reservations, before and after gateways have had time to send their hello."""

from random import Random

from neox_serve.core.tenancy.quota import Reservation, Spent
from neox_serve.core.tenancy.tenants import Quotas
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.link.streams import SendQueue
from neox_serve.router.metrics import RouterMetrics
from neox_serve.router.quotas import QuotaService
from neox_serve.wire import router_messages as wire

QUOTAS = Quotas(tokens_per_minute=100)
OPENS_S = 3.0
STARTED_S = 1_000_000.0
"""The wall clock at the router's start."""


class Replies(SendQueue[pb.ConnectGatewayResponse]):
    """A gateway's stream that keeps the replies."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[tuple[int, bool]] = []
        """Ids of reservations, each with whether it was made."""

    def put(self, message: pb.ConnectGatewayResponse) -> None:
        """Records a reply."""
        self.outcomes.append((message.reserve.reservation_id, not message.reserve.HasField("refusal")))


class Router:
    """A quota service in virtual time."""

    def __init__(self, now_s: float = OPENS_S) -> None:
        self.now_s = now_s
        self.quotas = QuotaService(
            clock=lambda: self.now_s,
            wall_clock=lambda: STARTED_S + self.now_s,
            opens_s=OPENS_S,
            metrics=RouterMetrics(),
            rng=Random(0),
        )

    def reserve(self, stream: Replies, number: int, tokens: int, gateway_id: str = "g") -> None:
        """A gateway asks for a reservation of tenant "a"."""
        self.quotas.reserve(gateway_id, stream, wire.reserve(Reservation(number, "a", tokens), QUOTAS).reserve)

    def settle(self, number: int, used_tokens: int) -> None:
        """Gateway "g" reports the end of a call."""
        self.quotas.settle("g", wire.settled_reservations([(number, used_tokens)]).settled_reservations)


def test_reservation_beyond_the_quota_is_refused_and_fits_after_a_settlement() -> None:
    router, stream = Router(), Replies()
    router.reserve(stream, 1, 80)
    router.reserve(stream, 2, 30)
    router.settle(1, 10)
    router.reserve(stream, 3, 30)
    assert stream.outcomes == [(1, True), (2, False), (3, True)]
    assert router.quotas.state("a").reserved_tokens == 30


def test_early_reservation_waits_for_the_hellos_of_other_gateways() -> None:
    router, stream = Router(now_s=0.0), Replies()
    router.reserve(stream, 1, 80)
    router.quotas.tick()
    assert stream.outcomes == []
    router.quotas.register("other", wire.gateway_hello("other", (), [Reservation(7, "a", 50)]).hello)
    router.now_s = OPENS_S
    router.quotas.tick()
    assert stream.outcomes == [(1, False)]


def test_use_from_before_the_restart_counts() -> None:
    router, stream = Router(), Replies()
    router.quotas.restore({"g": [Spent("a", STARTED_S, 1, 90)]})
    router.reserve(stream, 1, 20)
    assert stream.outcomes == [(1, False)]


def test_early_reservation_whose_call_ended_or_whose_stream_was_lost_gets_no_reply() -> None:
    router, ended, lost = Router(now_s=0.0), Replies(), Replies()
    router.reserve(ended, 1, 10)
    router.reserve(lost, 2, 10)
    router.settle(1, 0)
    router.quotas.drop(lost)
    router.now_s = OPENS_S
    router.quotas.tick()
    assert (ended.outcomes, lost.outcomes) == ([], [])
    assert router.quotas.state("a").reserved_tokens == 0


def test_reservations_of_a_gateway_that_will_not_return_count_as_used() -> None:
    router, stream = Router(), Replies()
    router.reserve(stream, 1, 80)
    router.quotas.forget(["g"])
    state = router.quotas.state("a")
    assert (state.reserved_tokens, state.minute_tokens) == (0, 80)
    router.reserve(stream, 2, 30, gateway_id="other")
    assert stream.outcomes == [(1, True), (2, False)]
