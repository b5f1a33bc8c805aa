"""The measurements of a simulated router and gateway between two calls of the policy: demand by class, and latencies."""

from collections.abc import Mapping
from dataclasses import dataclass

from autoscaling.attainment import Attained, Attainment
from autoscaling.signals import BULK, ClassDemand, Targets
from autoscaling.simulator.engine import Request, Urgency

CLASS_NAMES: Mapping[Urgency, str] = {Urgency.DEFAULT: "default", Urgency.BULK: BULK}
"""Names of the priority classes in the signals."""
_NEWEST_WEIGHT = 0.02
"""Weight of the newest answer in a tenant's expected answer length."""


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    """Requests of one class that arrived since the last measurement."""
    input_tokens: float = 0.0
    """Their prompt tokens."""
    output_tokens: float = 0.0
    """Their expected output tokens."""
    waiting_requests: int = 0
    """Requests of the class that wait for a replica now."""
    waiting_tokens: float = 0.0
    """Prompt tokens and expected output tokens of the waiting requests."""


class SignalCollector:
    """Counts requests. Engines append the requests that have their first token to `first_tokens`."""

    def __init__(self, targets: Targets) -> None:
        self.first_tokens: list[Request] = []
        self._counts = {urgency: _Counts() for urgency in Urgency}
        self._expected_output_tokens: dict[int, float] = {}
        self._attainment = Attainment(targets)
        self._tpots_s: list[float] = []

    def arrived(self, request: Request) -> None:
        """Records that a request has arrived for the first time."""
        counts = self._counts[request.urgency]
        counts.requests += 1
        counts.input_tokens += request.prompt_tokens
        counts.output_tokens += self._expected_output(request)

    def began_waiting(self, request: Request) -> None:
        """Records that a request waits for a replica."""
        request.held_tokens = int(request.prompt_tokens + self._expected_output(request))
        self._count_waiting(request, 1)

    def ended_waiting(self, request: Request) -> None:
        """Records that a waiting request was dispatched or refused."""
        self._count_waiting(request, -1)

    def completed(self, request: Request, tpot_s: float) -> None:
        """Records that a request has its complete answer."""
        before = self._expected_output(request)
        self._expected_output_tokens[request.tenant] = before + _NEWEST_WEIGHT * (request.output_tokens - before)
        self._tpots_s.append(tpot_s)

    def demand(self, seconds: float) -> dict[str, ClassDemand]:
        """Returns the demand by class over the `seconds` since the previous call."""
        found = {}
        for urgency, counts in self._counts.items():
            found[CLASS_NAMES[urgency]] = ClassDemand(
                counts.waiting_requests,
                counts.waiting_tokens,
                counts.requests / seconds,
                counts.input_tokens / seconds,
                counts.output_tokens / seconds,
            )
            counts.requests, counts.input_tokens, counts.output_tokens = 0, 0.0, 0.0
        return found

    def attained(self, now_s: float) -> Attained:
        """Returns the recent attainment, including the latencies since the previous call."""
        ttfts_s = [request.first_token_s - request.at_s for request in self.first_tokens if request.urgency is not Urgency.BULK]
        attained = self._attainment.report(ttfts_s, self._tpots_s, now_s)
        self.first_tokens.clear()
        self._tpots_s.clear()
        return attained

    def _expected_output(self, request: Request) -> float:
        return self._expected_output_tokens.get(request.tenant, float(request.output_tokens))

    def _count_waiting(self, request: Request, change: int) -> None:
        counts = self._counts[request.urgency]
        counts.waiting_requests += change
        counts.waiting_tokens += change * request.held_tokens
