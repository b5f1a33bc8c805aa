"""The life of a request: one terminal event, each lease settled once, at most one move."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.generation.request_life import Action, RequestEvent, Stage, event_of_failure, replica_lost, step

EVENTS = st.lists(st.sampled_from(RequestEvent), max_size=30)


def live(events: list[RequestEvent]) -> tuple[Stage, list[Action]]:
    """Returns the stage after all events, and all actions on the way."""
    stage = Stage.ADMITTING
    actions: list[Action] = []
    for event in events:
        taken = step(stage, event)
        stage = taken.stage
        actions += taken.actions
    return stage, actions


@given(EVENTS)
def test_life_has_exactly_one_terminal_event_if_it_ended(events: list[RequestEvent]) -> None:
    stage, actions = live(events)
    assert actions.count(Action.TERMINATE) == (stage is Stage.ENDED)


@given(EVENTS)
def test_life_settles_each_lease_exactly_once(events: list[RequestEvent]) -> None:
    stage, actions = live(events)
    held = stage in {Stage.WAITING, Stage.STREAMING}
    assert actions.count(Action.SUBMIT) - actions.count(Action.SETTLE) == held


@pytest.mark.parametrize("event", list(RequestEvent))
def test_request_with_delivered_output_moves_only_if_continuable(event: RequestEvent) -> None:
    assert (Action.ADMIT in step(Stage.STREAMING, event).actions) == (event is RequestEvent.CONTINUABLE)


@given(st.sampled_from(RequestEvent))
def test_life_after_the_end_ignores_events(event: RequestEvent) -> None:
    assert step(Stage.ENDED, event) == step(Stage.ENDED, RequestEvent.FINISHED)


@given(st.sampled_from([Stage.WAITING, Stage.STREAMING]))
def test_cancelled_request_on_a_replica_is_aborted_first(stage: Stage) -> None:
    assert step(stage, RequestEvent.CANCELLED).actions == (Action.ABORT, Action.SETTLE, Action.TERMINATE)


@pytest.mark.parametrize("reason", list(Reason))
def test_failure_of_the_replica_moves_a_request_once(reason: Reason) -> None:
    failure = ServeError(reason, "failed")
    movable = reason in {Reason.REPLICA_LOST, Reason.DRAINING}
    assert event_of_failure(failure, ()) is (RequestEvent.MOVABLE if movable else RequestEvent.FAILED)
    assert event_of_failure(failure, ("a",)) is RequestEvent.FAILED


def test_replica_lost_error_has_a_retry_delay() -> None:
    assert replica_lost("r").retry_after_s
