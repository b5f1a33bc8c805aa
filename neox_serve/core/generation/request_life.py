"""A request's life between gateway and engine, as a table, and the rule for sending it to a second replica.

A request is admitted (it gets a lease on a replica), sent, and answered until it ends. If its replica is lost before anything was
delivered it is admitted and sent once more, elsewhere; after that, another replica goes on with it where that is sound
(`continuation`). If a more important request needs its place, it is admitted anew. However it goes, each lease is settled exactly
once and the reader gets exactly one terminal event.
"""

from dataclasses import dataclass
from enum import Enum, auto

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.generation.continuation import MAX_CONTINUATIONS

REPLICA_LOST_RETRY_S = 1.0
"""After a replica died: others take the request at once; where it was the only one, a restart takes seconds."""


class Stage(Enum):
    """Where a request is."""

    ADMITTING = auto()
    WAITING = auto()  # sent, nothing delivered
    STREAMING = auto()  # something delivered
    ENDED = auto()


class RequestEvent(Enum):
    """What happens to a request."""

    GRANTED = auto()
    REFUSED = auto()
    DELIVERED = auto()
    FINISHED = auto()
    MOVABLE = auto()  # failed in a way that another replica may not; it may still be moved
    CONTINUABLE = auto()  # likewise, after something was delivered; another replica can go on from there
    YIELDED = auto()  # the router wants its place for a more important request
    FAILED = auto()
    CANCELLED = auto()


class Action(Enum):
    """What must follow, in this order."""

    SUBMIT = auto()  # send it on its replica's link
    ABORT = auto()  # tell the replica to free it
    SETTLE = auto()  # give its lease back
    ADMIT = auto()  # ask for another replica
    TERMINATE = auto()  # give the reader its terminal event


@dataclass(frozen=True, slots=True)
class Step:
    """The stage that follows and what to do."""

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
"""Pairs that are not listed change nothing: what arrives after the end is late news."""


def step(stage: Stage, event: RequestEvent) -> Step:
    """What follows an event."""
    return STEPS.get((stage, event)) or Step(stage)


def event_of_failure(failure: ServeError, failed_replicas: tuple[str, ...], *, continuable: bool = False) -> RequestEvent:
    """What a failure means. failed_replicas: those before. continuable: something was delivered, and another replica can go on.

    CONTINUABLE or MOVABLE where the failure is the replica's and not too many have failed the request before, else FAILED.
    """
    if not failure.safe_to_move:
        return RequestEvent.FAILED
    if continuable:
        return RequestEvent.CONTINUABLE if len(failed_replicas) < MAX_CONTINUATIONS else RequestEvent.FAILED
    return RequestEvent.MOVABLE if len(failed_replicas) < 1 else RequestEvent.FAILED


def replica_lost(replica_id: str) -> ServeError:
    """The error of a request whose replica went away."""
    return ServeError(
        Reason.REPLICA_LOST, "the replica was lost while serving this request", {"replica_id": replica_id}, REPLICA_LOST_RETRY_S
    )
