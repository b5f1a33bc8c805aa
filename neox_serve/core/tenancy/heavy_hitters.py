"""Which of many callers are the largest, in bounded memory: names for metrics, whose labels must not grow with the number of tenants.

Source: Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams" (ICDT 2005), the Space-Saving
summary, with weights that halve every `half_life_s` (forward decay: Cormode, Shkapenyuk, Srivastava, Xu, ICDE 2009).
"""

from dataclasses import dataclass

_MAX_HALVINGS = 64.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a caller is among the largest, and who has just lost its place to it."""

    named: bool
    displaced: str | None = None


class HeavyHitters:
    """The `most` largest of all callers. candidates: how many are counted, more than `most`. lead: how much larger a caller must be than
    the smallest of the largest to take its place, so that two alike do not take turns.

    A caller with more than `lead / most` of all weight is always among them once it has called.
    """

    def __init__(self, most: int, *, candidates: int, half_life_s: float, lead: float = 1.25) -> None:
        if not 1 <= most < candidates:
            raise ValueError(f"most must be 1 or more and below candidates ({candidates}), got {most}")
        self._most = most
        self._candidates = candidates
        self._half_life_s = half_life_s
        self._lead = lead
        self._weights: dict[str, float] = {}
        self._named: set[str] = set()
        self._epoch_s = 0.0

    def add(self, caller: str, weight: float, now_s: float) -> Standing:
        """A caller has used something. weight: above 0, for example tokens."""
        self._count(caller, weight * self._growth(now_s))
        if caller in self._named:
            return Standing(True)
        if len(self._named) < self._most:
            self._named.add(caller)
            return Standing(True)
        smallest = min(self._named, key=self._weights.__getitem__)
        if self._weights[caller] <= self._lead * self._weights[smallest]:
            return Standing(False)
        self._named.remove(smallest)
        self._named.add(caller)
        return Standing(True, smallest)

    def _count(self, caller: str, weight: float) -> None:
        """A new caller takes over the smallest count of those that are not named."""
        inherited = 0.0
        if caller not in self._weights and len(self._weights) >= self._candidates:
            forgotten = min(self._weights.keys() - self._named, key=self._weights.__getitem__)
            inherited = self._weights.pop(forgotten)
        self._weights[caller] = self._weights.get(caller, inherited) + weight

    def _growth(self, now_s: float) -> float:
        """Weights of now over those of the epoch: what is new grows, instead of all that is old shrinking."""
        halvings = (now_s - self._epoch_s) / self._half_life_s
        if halvings > _MAX_HALVINGS:
            scale = 2.0**-halvings
            self._weights = {caller: weight * scale for caller, weight in self._weights.items()}
            self._epoch_s, halvings = now_s, 0.0
        return float(2.0**halvings)
