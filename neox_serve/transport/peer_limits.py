"""What a server tolerates from the peer of one connection: control frames, PINGs and silence.

Each class is a small state machine that is fed with events and the time in seconds, and says whether the peer went too far.
"""

from enum import Enum, auto

_MAX_CONTROL_FRAMES = 500
"""Control frames allowed in one window."""
_CONTROL_FRAME_WINDOW_S = 10.0
"""Length of the window in which control frames are counted."""
_MAX_PING_STRIKES = 2
"""Early PINGs that are tolerated; the same number as in gRPC's servers."""


class ControlFrameLimit:
    """Limits the frames that are cheap to send, expensive to process, and of no use to an honest client in large numbers.

    These are SETTINGS, and RST_STREAM for a stream that was opened in the same read. h2 needs 35 us for one of the first kind and 160 us
    for a call of the second, so what this limit allows costs at most 1 % of a core.
    """

    def __init__(self) -> None:
        self._window_began_s = 0.0
        self._frames = 0

    def exceeded_by_frame(self, now_s: float) -> bool:
        """Counts a frame and returns whether it exceeds the limit."""
        if now_s >= self._window_began_s + _CONTROL_FRAME_WINDOW_S:
            self._window_began_s, self._frames = now_s, 0
        self._frames += 1
        return self._frames > _MAX_CONTROL_FRAMES


class PingLimit:
    """Limits the PINGs of a client to which nothing is sent, as gRPC's servers do."""

    def __init__(self, min_interval_s: float) -> None:
        """`min_interval_s` is the time that must pass between two PINGs while nothing is sent to the client."""
        self._min_interval_s = min_interval_s
        self._last_ping_s: float | None = None
        self._strikes = 0

    def data_sent(self) -> None:
        """Records that HEADERS or DATA were sent. PINGs that measure the connection may follow, and earlier strikes are forgiven."""
        self._last_ping_s = None
        self._strikes = 0

    def exceeded_by_ping(self, now_s: float) -> bool:
        """Counts a PING and returns whether it exceeds the limit."""
        if self._last_ping_s is not None and now_s < self._last_ping_s + self._min_interval_s:
            self._strikes += 1
        self._last_ping_s = now_s
        return self._strikes > _MAX_PING_STRIKES


class KeepaliveAction(Enum):
    """What to do about a client after a keepalive interval."""

    WAIT = auto()
    """The client is alive; check again after the keepalive interval."""
    PING = auto()
    """The client was silent; send a PING and check again after the keepalive timeout."""
    DROP = auto()
    """The client did not answer the PING; abort the connection."""


class Keepalive:
    """Detects a client that is gone. A client that has sent nothing before the first check is dropped at once."""

    def __init__(self) -> None:
        self._data_received = False
        self._ping_sent = True

    def data_received(self) -> None:
        """Records that the client has sent something."""
        self._data_received = True

    def check(self) -> KeepaliveAction:
        """Returns what to do; to be called when the interval of the last action is over."""
        if self._data_received:
            self._data_received = self._ping_sent = False
            return KeepaliveAction.WAIT
        if self._ping_sent:
            return KeepaliveAction.DROP
        self._ping_sent = True
        return KeepaliveAction.PING
