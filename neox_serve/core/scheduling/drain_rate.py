"""The measured rate at which work completes. Retry delays and expected queue waits are computed from it."""

import math

TIME_CONSTANT_S = 5.0
"""After this time a completion counts 1/e as much."""


class DrainRate:
    """Recent tokens per second, as an exponentially weighted average."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._at_s = 0.0
        self._since_s: float | None = None

    def add(self, tokens: int, now_s: float) -> None:
        """Records that requests with this many tokens have completed."""
        if self._since_s is None:
            self._since_s = self._at_s = now_s
        self._sum = self._sum * math.exp((self._at_s - now_s) / TIME_CONSTANT_S) + tokens
        self._at_s = now_s

    def tokens_per_second(self, now_s: float) -> float | None:
        """Returns the current rate, or None in the first second."""
        if self._since_s is None or now_s - self._since_s < 1.0:
            return None
        seen = 1.0 - math.exp((self._since_s - now_s) / TIME_CONSTANT_S)
        return self._sum * math.exp((self._at_s - now_s) / TIME_CONSTANT_S) / (TIME_CONSTANT_S * seen)
