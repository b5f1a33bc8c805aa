"""Virtual token counters: the weighted service each tenant has received. The tenant with the smallest counter is served next.

A tenant's counter grows by the cost of its requests divided by its weight. When a tenant returns after a pause, its counter is lifted to
the smallest counter of the waiting tenants, so that idle time earns no credit. A refund never takes a counter below the value it was lifted
to. Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2, and section 4.4 for weights.
"""

from dataclasses import dataclass

INPUT_COST = 1.0
"""Cost of a prompt token, as in the paper."""
OUTPUT_COST = 2.0
"""Cost of a generated token, as in the paper."""
CACHED_COST = 0.1
"""Cost of a prompt token whose KV block is cached: it takes memory but almost no computation."""


def cost(prompt_tokens: int, cached_tokens: int, output_tokens: float) -> float:
    """Returns the cost of a request, in units of one prompt token."""
    return INPUT_COST * (prompt_tokens - cached_tokens) + CACHED_COST * cached_tokens + OUTPUT_COST * output_tokens


@dataclass(slots=True)
class _Counter:
    """Service received by one tenant."""

    value: float = 0.0
    lifted_to: float = 0.0


class FairCounters:
    """The counters of all tenants."""

    def __init__(self) -> None:
        self._counters: dict[str, _Counter] = {}
        self._waiting: set[str] = set()
        self._last_left = 0.0

    def value(self, tenant: str) -> float:
        """Returns a tenant's counter; 0 for an unknown tenant."""
        counter = self._counters.get(tenant)
        return counter.value if counter else 0.0

    def begin_waiting(self, tenant: str) -> None:
        """Call when a tenant's first request starts to wait. Lifts its counter to the smallest counter of the waiting tenants.

        If no tenant waits, it is lifted to the counter of the tenant that left the queue last.
        """
        if tenant in self._waiting:
            return
        counter = self._counters.setdefault(tenant, _Counter())
        floor = min((self._counters[other].value for other in self._waiting), default=self._last_left)
        counter.value = counter.lifted_to = max(counter.value, floor)
        self._waiting.add(tenant)

    def end_waiting(self, tenant: str) -> None:
        """Call when a tenant has no more waiting requests."""
        if tenant in self._waiting:
            self._waiting.discard(tenant)
            self._last_left = self._counters[tenant].value

    def charge(self, tenant: str, weight: float, tokens: float) -> None:
        """Adds service to a tenant's counter. tokens: cost in prompt tokens; a negative number is a refund."""
        counter = self._counters.setdefault(tenant, _Counter())
        counter.value = max(counter.lifted_to, counter.value + tokens / weight)
