"""A call ends exactly once, however deadline, cancellation, failure and the engine's last output race."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.generation.call_life import ENDS, TERMINAL, TRANSITIONS, CallEvent, CallLife, Phase


@given(st.lists(st.sampled_from(CallEvent)))
def test_every_accepted_call_gets_exactly_one_terminal_event(happenings: list[CallEvent]) -> None:
    life = CallLife()
    ends = 0
    first_end: Phase | None = None
    for event in [CallEvent.ACCEPT, *happenings, CallEvent.FINISH]:
        if (life.phase, event) not in TRANSITIONS:
            continue
        if life.advance(event):
            ends += 1
            first_end = life.phase
    assert ends == 1
    assert life.ended
    assert life.phase is first_end


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(sorted(TERMINAL), CallEvent)))
def test_events_after_the_end_change_nothing(phase: Phase, event: CallEvent) -> None:
    assert TRANSITIONS[phase, event] is phase


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(set(Phase) - TERMINAL, ENDS)))
def test_every_live_phase_accepts_every_terminal_event(phase: Phase, event: CallEvent) -> None:
    assert TRANSITIONS[phase, event] is ENDS[event]


def test_output_before_admission_raises() -> None:
    life = CallLife()
    life.advance(CallEvent.ACCEPT)
    with pytest.raises(ValueError, match="event output is not allowed in phase accepted"):
        life.advance(CallEvent.OUTPUT)
