"""The schedule as a timeline: learning rate and context length over the used fraction of the budget."""

import pytest

from tools.builtin_model.schedule import Budget, Schedule

SCHEDULE = Schedule(
    peak_learning_rate=1.0,
    warmup_fraction=0.1,
    decay_from_fraction=0.6,
    context_stages=((0.0, 256), (0.5, 512), (0.9, 2048)),
)


@pytest.mark.parametrize(
    ("fraction", "rate"),
    [(0.05, 0.5), (0.1, 1.0), (0.3, 1.0), (0.6, 1.0), (0.8, 0.5), (1.0, 0.0)],
)
def test_learning_rate_warms_up_holds_and_decays_to_zero(fraction: float, rate: float) -> None:
    assert SCHEDULE.learning_rate(fraction) == pytest.approx(rate)


def test_learning_rate_at_the_start_is_not_zero() -> None:
    assert SCHEDULE.learning_rate(0.0) > 0.0


@pytest.mark.parametrize(("fraction", "tokens"), [(0.0, 256), (0.49, 256), (0.5, 512), (0.9, 2048), (1.0, 2048)])
def test_sequence_tokens_grow_with_the_used_fraction(fraction: float, tokens: int) -> None:
    assert SCHEDULE.sequence_tokens(fraction) == tokens


def test_is_annealing_begins_with_the_decay() -> None:
    assert not SCHEDULE.is_annealing(0.59)
    assert SCHEDULE.is_annealing(0.6)


def test_schedule_decay_before_warmup_is_rejected() -> None:
    with pytest.raises(ValueError, match="must satisfy 0 <= warmup <= decay < 1"):
        Schedule(warmup_fraction=0.5, decay_from_fraction=0.4)


def test_schedule_contexts_not_starting_at_zero_are_rejected() -> None:
    with pytest.raises(ValueError, match="must start at 0 and increase"):
        Schedule(context_stages=((0.2, 512),))


def test_budget_longer_time_reduces_the_spent_fraction() -> None:
    assert Budget(seconds_s=100.0).spent_fraction(7, 90.0) == pytest.approx(0.9)
    assert Budget(seconds_s=200.0).spent_fraction(7, 90.0) == pytest.approx(0.45)


def test_budget_steps_ignore_time_and_end_at_one() -> None:
    assert Budget(steps=10).spent_fraction(5, 1e9) == 0.5
    assert Budget(steps=10).spent_fraction(12, 0.0) == 1.0


@pytest.mark.parametrize(("steps", "seconds_s"), [(None, None), (1, 1.0), (0, None), (None, 0.0)])
def test_budget_missing_duplicate_or_zero_value_is_rejected(steps: int | None, seconds_s: float | None) -> None:
    with pytest.raises(ValueError, match="steps"):
        Budget(steps=steps, seconds_s=seconds_s)
