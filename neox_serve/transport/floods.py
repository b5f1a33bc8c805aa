"""Which frames of a client are too many: those that are cheap to send, dear to take and of no use to an honest client in such numbers."""

_MAX_FRAMES = 500
_WINDOW_S = 10.0


class Floods:
    """The dear frames of one connection: settings, and resets of calls that have only just come. h2 takes 35 us for one of the first and
    160 us for a call of the second kind, so the most that is let through costs 1 % of a core."""

    def __init__(self) -> None:
        self._since_s = 0.0
        self._frames = 0

    def too_many(self, now_s: float) -> bool:
        """Takes a frame; whether it is one too many."""
        if now_s >= self._since_s + _WINDOW_S:
            self._since_s, self._frames = now_s, 0
        self._frames += 1
        return self._frames > _MAX_FRAMES
