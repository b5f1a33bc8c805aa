"""What a simulated router and gateway measure between two questions to the policy: demand by class, and how fast answers came."""

from collections.abc import Mapping
from dataclasses import dataclass

from autoscaling.attainment import Attained, Attainment
from autoscaling.signals import BULK, ClassDemand, Targets
from autoscaling.simulator.engine import Request, Urgency

CLASS_NAMES: Mapping[Urgency, str] = {Urgency.DEFAULT: "default", Urgency.BULK: BULK}
_FORGETTING = 0.02
"""How much the newest answer counts in how long a tenant's answers are expected to be."""


@dataclass(slots=True)
class _Counts:
    """What came of one class since the last look, and what of it waits."""

    requests: int = 0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    waiting_requests: int = 0
    waiting_tokens: float = 0.0


class Meter:
    """Told of every request; first_tokens is where engines put those that have theirs."""

    def __init__(self, targets: Targets) -> None:
        self.first_tokens: list[Request] = []
        self._counts = {urgency: _Counts() for urgency in Urgency}
        self._expected: dict[int, float] = {}
        self._attainment = Attainment(targets)
        self._tpots: list[float] = []

    def came(self, request: Request) -> None:
        """A request has come, for the first time."""
        counts = self._counts[request.urgency]
        counts.requests += 1
        counts.input_tokens += request.prompt_tokens
        counts.output_tokens += self._expected_output(request)

    def waits(self, request: Request) -> None:
        """It waits for a replica."""
        request.held_tokens = int(request.prompt_tokens + self._expected_output(request))
        self._count_waiting(request, 1)

    def waits_no_more(self, request: Request) -> None:
        """It has got one, or is refused."""
        self._count_waiting(request, -1)

    def ended(self, request: Request, tpot_s: float) -> None:
        """Its answer is whole."""
        before = self._expected_output(request)
        self._expected[request.tenant] = before + _FORGETTING * (request.output_tokens - before)
        self._tpots.append(tpot_s)

    def demand(self, seconds: float) -> dict[str, ClassDemand]:
        """By class, over the seconds since the last look."""
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
        """How the answers since the last look kept the targets."""
        ttfts_s = [request.first_token_s - request.at_s for request in self.first_tokens if request.urgency is not Urgency.BULK]
        attained = self._attainment.report(ttfts_s, self._tpots, now_s)
        self.first_tokens.clear()
        self._tpots.clear()
        return attained

    def _expected_output(self, request: Request) -> float:
        return self._expected.get(request.tenant, float(request.output_tokens))

    def _count_waiting(self, request: Request, change: int) -> None:
        counts = self._counts[request.urgency]
        counts.waiting_requests += change
        counts.waiting_tokens += change * request.held_tokens
