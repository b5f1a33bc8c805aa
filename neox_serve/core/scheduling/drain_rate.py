"""How fast work leaves, measured: what waiting clients are told, and what deadlines are held against."""

import math

TIME_CONSTANT_S = 5.0


class DrainRate:
    """Tokens a second, of late: each counts less the longer it is past, by a factor of e every TIME_CONSTANT_S."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._at_s = 0.0
        self._since_s: float | None = None

    def add(self, tokens: int, now_s: float) -> None:
        """So many have left."""
        if self._since_s is None:
            self._since_s = self._at_s = now_s
        self._sum = self._sum * math.exp((self._at_s - now_s) / TIME_CONSTANT_S) + tokens
        self._at_s = now_s

    def tokens_per_second(self, now_s: float) -> float | None:
        """The rate now; None until a second has been seen."""
        if self._since_s is None or now_s - self._since_s < 1.0:
            return None
        seen = 1.0 - math.exp((self._since_s - now_s) / TIME_CONSTANT_S)
        return self._sum * math.exp((self._at_s - now_s) / TIME_CONSTANT_S) / (TIME_CONSTANT_S * seen)
