"""The life of a request between gateway and engine, as a transition table, and the rule for sending it to another replica.

A request is admitted (it gets a lease on a replica), submitted, and streamed until it ends. If its replica is lost before any output was
delivered, the request is admitted and submitted once more on another replica. If output was delivered, another replica continues it if
that is sound (`continuation`). If the router preempts the request for one of a higher class, it is admitted again. In every case each lease
is settled exactly once and the reader gets exactly one terminal event.
"""

from dataclasses import dataclass
from enum import Enum, auto

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.generation.continuation import MAX_CONTINUATIONS

REPLICA_LOST_RETRY_S = 1.0
"""Retry delay after a replica was lost. Other replicas take the request at once; restarting an only replica takes seconds."""


class Stage(Enum):
    """The state of a request."""

    ADMITTING = auto()
    """The request waits for a lease on a replica."""
    WAITING = auto()
    """The request was submitted and no output was delivered."""
    STREAMING = auto()
    """Some output was delivered."""
    ENDED = auto()


class RequestEvent(Enum):
    """What can happen to a request."""

    GRANTED = auto()
    """The router granted a lease."""
    REFUSED = auto()
    """The router refused the request."""
    DELIVERED = auto()
    """Output reached the reader."""
    FINISHED = auto()
    """The last output reached the reader."""
    MOVABLE = auto()
    """The request failed because of its replica; it may run on another one if nothing was delivered."""
    CONTINUABLE = auto()
    """The request failed because of its replica after output was delivered; another replica can continue it."""
    YIELDED = auto()
    """The router preempted the request."""
    FAILED = auto()
    CANCELLED = auto()


class Action(Enum):
    """What the gateway does after an event, in the order of the step."""

    SUBMIT = auto()
    """Send the request to its replica."""
    ABORT = auto()
    """Tell the replica to free the request."""
    SETTLE = auto()
    """Return the lease to the router."""
    ADMIT = auto()
    """Ask the router for another replica."""
    TERMINATE = auto()
    """Give the reader its terminal event."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next stage and the actions to take."""

    stage: Stage
    actions: tuple[Action, ...] = ()


_ENDS = (Action.SETTLE, Action.TERMINATE)

STEPS = {
    (Stage.ADMITTING, RequestEvent.GRANTED): Step(Stage.WAITING, (Action.SUBMIT,)),
    (Stage.ADMITTING, RequestEvent.REFUSED): Step(Stage.ENDED, (Action.TERMINATE,)),
    (Stage.ADMITTING, RequestEvent.CANCELLED): Step(Stage.ENDED, (Action.TERMINATE,)),
    (Stage.WAITING, RequestEvent.DELIVERED): Step(Stage.STREAMING),
    (Stage.WAITING, RequestEvent.FINISHED): Step(Stage.ENDED, _ENDS),
    (Stage.WAITING, RequestEvent.MOVABLE): Step(Stage.ADMITTING, (Action.SETTLE, Action.ADMIT)),
    (Stage.WAITING, RequestEvent.CONTINUABLE): Step(Stage.ADMITTING, (Action.SETTLE, Action.ADMIT)),
    (Stage.WAITING, RequestEvent.YIELDED): Step(Stage.ADMITTING, (Action.ABORT, Action.SETTLE, Action.ADMIT)),
    (Stage.WAITING, RequestEvent.FAILED): Step(Stage.ENDED, _ENDS),
    (Stage.WAITING, RequestEvent.CANCELLED): Step(Stage.ENDED, (Action.ABORT, *_ENDS)),
    (Stage.STREAMING, RequestEvent.DELIVERED): Step(Stage.STREAMING),
    (Stage.STREAMING, RequestEvent.FINISHED): Step(Stage.ENDED, _ENDS),
    (Stage.STREAMING, RequestEvent.MOVABLE): Step(Stage.ENDED, _ENDS),
    (Stage.STREAMING, RequestEvent.CONTINUABLE): Step(Stage.ADMITTING, (Action.SETTLE, Action.ADMIT)),
    (Stage.STREAMING, RequestEvent.FAILED): Step(Stage.ENDED, _ENDS),
    (Stage.STREAMING, RequestEvent.CANCELLED): Step(Stage.ENDED, (Action.ABORT, *_ENDS)),
}
"""All transitions. An event that has no entry for its stage changes nothing, for example output that arrives after the end."""


def step(stage: Stage, event: RequestEvent) -> Step:
    """Returns the step for an event; the stage stays the same if the table has no entry."""
    return STEPS.get((stage, event)) or Step(stage)


def event_of_failure(failure: ServeError, failed_replicas: tuple[str, ...], *, continuable: bool = False) -> RequestEvent:
    """Classifies a failure.

    failed_replicas: replicas on which the request failed before. continuable: some output was delivered and another replica can continue.
    Returns CONTINUABLE or MOVABLE if the replica is at fault and the request has not yet failed on too many replicas, otherwise FAILED.
    """
    if not failure.safe_to_move:
        return RequestEvent.FAILED
    if continuable:
        return RequestEvent.CONTINUABLE if len(failed_replicas) < MAX_CONTINUATIONS else RequestEvent.FAILED
    return RequestEvent.MOVABLE if len(failed_replicas) < 1 else RequestEvent.FAILED


def replica_lost(replica_id: str) -> ServeError:
    """Returns the error for a request whose replica was lost."""
    return ServeError(
        Reason.REPLICA_LOST, "the replica was lost while serving this request", {"replica_id": replica_id}, REPLICA_LOST_RETRY_S
    )
