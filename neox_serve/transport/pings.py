"""Which pings of a client are too many, as gRPC's servers have it: those that come often though nothing is sent to the client."""

_MAX_STRIKES = 2


class Pings:
    """The pings of one connection. min_interval_s: the least time between two of them while nothing is sent."""

    def __init__(self, min_interval_s: float) -> None:
        self._min_interval_s = min_interval_s
        self._last_s: float | None = None
        self._strikes = 0

    def sent(self) -> None:
        """Something was sent: pings that measure the connection may follow."""
        self._last_s = None
        self._strikes = 0

    def too_many(self, now_s: float) -> bool:
        """Takes a ping; whether it is one too many."""
        if self._last_s is not None and now_s < self._last_s + self._min_interval_s:
            self._strikes += 1
        self._last_s = now_s
        return self._strikes > _MAX_STRIKES
