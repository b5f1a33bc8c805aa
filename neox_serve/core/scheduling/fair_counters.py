"""Virtual token counters: how much each tenant has been served, weighted, so that the one served least comes next.

A tenant's counter grows by what its requests cost, divided by its weight. A tenant that comes back after a pause is lifted to those that
wait, so that nobody saves up for later; a refund never takes a counter below where it was lifted to.
Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024: algorithm 2, and section 4.4 for weights.
"""

from dataclasses import dataclass

INPUT_COST = 1.0
OUTPUT_COST = 2.0
"""Of a token read and of one generated, as in the paper."""
CACHED_COST = 0.1
"""Of a prompt token whose KV block is there already: it takes memory, and next to no computation."""


def cost(prompt_tokens: int, cached_tokens: int, output_tokens: float) -> float:
    """What a request costs, in input tokens."""
    return INPUT_COST * (prompt_tokens - cached_tokens) + CACHED_COST * cached_tokens + OUTPUT_COST * output_tokens


@dataclass(slots=True)
class _Counter:
    value: float = 0.0
    lifted_to: float = 0.0


class FairCounters:
    """Counters of all tenants seen so far."""

    def __init__(self) -> None:
        self._counters: dict[str, _Counter] = {}
        self._waiting: set[str] = set()
        self._last_left = 0.0

    def value(self, tenant: str) -> float:
        """A tenant's counter."""
        counter = self._counters.get(tenant)
        return counter.value if counter else 0.0

    def begin_waiting(self, tenant: str) -> None:
        """Its first request waits: it is lifted to the least of those that wait, or to the last that did."""
        if tenant in self._waiting:
            return
        counter = self._counters.setdefault(tenant, _Counter())
        floor = min((self._counters[other].value for other in self._waiting), default=self._last_left)
        counter.value = counter.lifted_to = max(counter.value, floor)
        self._waiting.add(tenant)

    def end_waiting(self, tenant: str) -> None:
        """None of its requests waits any more."""
        if tenant in self._waiting:
            self._waiting.discard(tenant)
            self._last_left = self._counters[tenant].value

    def charge(self, tenant: str, weight: float, tokens: float) -> None:
        """It was served so much; a negative number is a refund."""
        counter = self._counters.setdefault(tenant, _Counter())
        counter.value = max(counter.lifted_to, counter.value + tokens / weight)
