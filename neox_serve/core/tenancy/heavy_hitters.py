"""Finds the largest of many callers in bounded memory. Metrics use it, because their labels must not grow with the number of tenants.

Source: Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams" (ICDT 2005), the Space-Saving
summary, with weights that halve every `half_life_s` (forward decay: Cormode, Shkapenyuk, Srivastava, Xu, ICDE 2009).
"""

from dataclasses import dataclass

_MAX_HALVINGS = 64.0


@dataclass(frozen=True, slots=True)
class Standing:
    """The result of counting a caller."""

    named: bool
    """Whether the caller is among the largest."""
    displaced: str | None = None
    """The caller that just lost its place to this one."""


class HeavyHitters:
    """The `capacity` largest callers.

    A caller with more than `lead / capacity` of the total weight is always among them once it has called.
    """

    def __init__(self, capacity: int, *, candidates: int, half_life_s: float, lead: float = 1.25) -> None:
        """candidates: number of callers that are counted, more than `capacity`. half_life_s: time after which a weight counts half.

        lead: a caller must be larger than the smallest named one by this factor to replace it, so that two equal callers do not alternate.
        Raises ValueError.
        """
        if not 1 <= capacity < candidates:
            raise ValueError(f"capacity {capacity} must be at least 1 and below candidates ({candidates})")
        self._capacity = capacity
        self._candidates = candidates
        self._half_life_s = half_life_s
        self._lead = lead
        self._weights: dict[str, float] = {}
        self._named: set[str] = set()
        self._epoch_s = 0.0

    def add(self, caller: str, weight: float, now_s: float) -> Standing:
        """Counts a use by a caller. weight: above 0, for example tokens."""
        self._count(caller, weight * self._growth(now_s))
        if caller in self._named:
            return Standing(True)
        if len(self._named) < self._capacity:
            self._named.add(caller)
            return Standing(True)
        smallest = min(self._named, key=self._weights.__getitem__)
        if self._weights[caller] <= self._lead * self._weights[smallest]:
            return Standing(False)
        self._named.remove(smallest)
        self._named.add(caller)
        return Standing(True, smallest)

    def _count(self, caller: str, weight: float) -> None:
        """Adds to a caller's weight. If all candidates are taken, a new caller inherits the smallest weight that is not named."""
        inherited = 0.0
        if caller not in self._weights and len(self._weights) >= self._candidates:
            forgotten = min(self._weights.keys() - self._named, key=self._weights.__getitem__)
            inherited = self._weights.pop(forgotten)
        self._weights[caller] = self._weights.get(caller, inherited) + weight

    def _growth(self, now_s: float) -> float:
        """Returns the factor for weights added now. New weights grow instead of all old ones shrinking."""
        halvings = (now_s - self._epoch_s) / self._half_life_s
        if halvings > _MAX_HALVINGS:
            scale = 2.0**-halvings
            self._weights = {caller: weight * scale for caller, weight in self._weights.items()}
            self._epoch_s, halvings = now_s, 0.0
        return float(2.0**halvings)
