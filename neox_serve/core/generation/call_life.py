"""The life of one call, as a table: whatever happens and in whatever order, it ends exactly once.

Theory of operation: deadline, cancellation, failure and the engine's end race each other. Whoever handles a call reports what happened as
an event; the table says which phase follows. The first event that ends the call decides how it ended; what comes later changes nothing.

    RECEIVED --ACCEPT--> ACCEPTED --ADMIT--> ADMITTED --OUTPUT--> GENERATING
    any of these --FINISH--> FINISHED   --EXPIRE--> PARTIAL   --FAIL--> FAILED   --CANCEL--> CANCELLED
"""

from collections.abc import Mapping
from enum import StrEnum


class Phase(StrEnum):
    """Where a call stands."""

    RECEIVED = "received"  # it may be turned away: the gateway is full or drains
    ACCEPTED = "accepted"  # it will get exactly one terminal event
    ADMITTED = "admitted"  # an engine works on at least one of its prompts
    GENERATING = "generating"  # at least one token has arrived
    FINISHED = "finished"  # the answer was complete
    PARTIAL = "partial"  # the deadline came, and the caller had asked for what there is
    FAILED = "failed"  # an error was sent
    CANCELLED = "cancelled"  # the caller is gone; nothing can be sent


class CallEvent(StrEnum):
    """What can happen to a call."""

    ACCEPT = "accept"
    ADMIT = "admit"
    OUTPUT = "output"
    FINISH = "finish"
    EXPIRE = "expire"
    FAIL = "fail"
    CANCEL = "cancel"


ENDS: Mapping[CallEvent, Phase] = {
    CallEvent.FINISH: Phase.FINISHED,
    CallEvent.EXPIRE: Phase.PARTIAL,
    CallEvent.FAIL: Phase.FAILED,
    CallEvent.CANCEL: Phase.CANCELLED,
}
"""Events that end a call, and how."""

TERMINAL = frozenset(ENDS.values())

_STEPS: Mapping[tuple[Phase, CallEvent], Phase] = {
    (Phase.RECEIVED, CallEvent.ACCEPT): Phase.ACCEPTED,
    (Phase.ACCEPTED, CallEvent.ADMIT): Phase.ADMITTED,
    (Phase.ADMITTED, CallEvent.ADMIT): Phase.ADMITTED,  # another of its prompts
    (Phase.GENERATING, CallEvent.ADMIT): Phase.GENERATING,
    (Phase.ADMITTED, CallEvent.OUTPUT): Phase.GENERATING,
    (Phase.GENERATING, CallEvent.OUTPUT): Phase.GENERATING,
}

TRANSITIONS: Mapping[tuple[Phase, CallEvent], Phase] = {
    **_STEPS,
    **{(phase, event): end for phase in Phase if phase not in TERMINAL for event, end in ENDS.items()},
    **{(phase, event): phase for phase in TERMINAL for event in CallEvent},
}
"""Every allowed step. A pair that is missing is a bug of ours (output before admission, say)."""


class CallLife:
    """One call's way through the table."""

    __slots__ = ("_phase",)

    def __init__(self) -> None:
        self._phase = Phase.RECEIVED

    @property
    def phase(self) -> Phase:
        """Where the call stands."""
        return self._phase

    @property
    def ended(self) -> bool:
        """Whether a terminal event has happened."""
        return self._phase in TERMINAL

    def advance(self, event: CallEvent) -> bool:
        """Takes an event; returns whether it is the one that ended the call. Raises ValueError for a step that the table lacks."""
        before = self._phase
        after = TRANSITIONS.get((before, event))
        if after is None:
            raise ValueError(f"{event} in phase {before}")
        self._phase = after
        return after in TERMINAL and before not in TERMINAL
