"""The life of one client call, as a transition table: whatever happens, and in whatever order, a call ends exactly once.

Theory of operation: the deadline, a cancellation, a failure and the engine's last output race each other. The code that handles a call
reports each of them as an event, and the table gives the next phase. The first event that ends the call decides how it ended. Later events
change nothing.

    RECEIVED --ACCEPT--> ACCEPTED --ADMIT--> ADMITTED --OUTPUT--> GENERATING
    any of these --FINISH--> FINISHED   --EXPIRE--> PARTIAL   --FAIL--> FAILED   --CANCEL--> CANCELLED
"""

from collections.abc import Mapping
from enum import StrEnum


class Phase(StrEnum):
    """The state of a call."""

    RECEIVED = "received"
    """The gateway may still reject the call because it is full or draining."""
    ACCEPTED = "accepted"
    """The call will get exactly one terminal event."""
    ADMITTED = "admitted"
    """An engine has at least one of the call's prompts."""
    GENERATING = "generating"
    """At least one token has arrived."""
    FINISHED = "finished"
    """The complete response was sent."""
    PARTIAL = "partial"
    """The deadline passed and the output so far was sent, as the caller had asked."""
    FAILED = "failed"
    """An error was sent."""
    CANCELLED = "cancelled"
    """The caller has gone; nothing can be sent."""


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
"""The events that end a call, with the phase that follows."""

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
"""All allowed transitions. An event that has no entry for its phase (for example output before admission) is a bug."""


class CallLife:
    """The current phase of one call."""

    __slots__ = ("_phase",)

    def __init__(self) -> None:
        self._phase = Phase.RECEIVED

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self._phase

    @property
    def ended(self) -> bool:
        """Whether a terminal event has happened."""
        return self._phase in TERMINAL

    def advance(self, event: CallEvent) -> bool:
        """Applies an event. Returns True if this event ended the call. Raises ValueError if the table has no such transition."""
        before = self._phase
        after = TRANSITIONS.get((before, event))
        if after is None:
            raise ValueError(f"event {event} is not allowed in phase {before}")
        self._phase = after
        return after in TERMINAL and before not in TERMINAL
