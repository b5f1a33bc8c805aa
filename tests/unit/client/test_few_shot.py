"""Prompts of templates and examples, and labels compared by what they are worth."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.client.few_shot import Example, Question, Template, chosen

LOG = st.floats(-50, 0)
SAD, GLAD = Example("it rained", "bad"), Example("the sun shone", "good")


def test_prompt_shows_examples_with_their_labels_and_asks_for_the_last() -> None:
    template = Template(instruction="Judge.\n\n")
    assert template.prompt([SAD], "we won") == "Judge.\n\nText: it rained\nLabel: bad\n\nText: we won\nLabel:"
    assert Question("we won", ["bad", "good"], [SAD], template, calibrated=False).pairs() == [
        (template.prompt([SAD], "we won"), " bad"),
        (template.prompt([SAD], "we won"), " good"),
    ]


def test_text_with_braces_stands_as_it_is() -> None:
    assert Template().prompt([], "{text} {label}") == "Text: {text} {label}\nLabel:"


@pytest.mark.parametrize("asked", ["no place", "{text} {text}"])
def test_template_without_one_place_for_the_text_is_refused(asked: str) -> None:
    with pytest.raises(ValueError, match="asked: "):
        Template(asked)


@pytest.mark.parametrize("labels", [[], ["one"], ["same", "same"], ["", "other"]])
def test_labels_that_cannot_be_compared_are_refused(labels: list[str]) -> None:
    with pytest.raises(ValueError, match="labels: "):
        Question("t", labels)


@given(st.lists(LOG, min_size=2, max_size=5), st.data())
def test_calibration_takes_out_what_labels_are_worth_without_a_text(given_: list[float], data: st.DataObject) -> None:
    labels = [f"label {number}" for number in range(len(given_))]
    bias = data.draw(st.lists(LOG, min_size=len(given_), max_size=len(given_)))
    plain = Question("t", labels, calibrated=False).answer(given_)
    biased = [one + other for one, other in zip(given_, bias, strict=True)]
    calibrated = Question("t", labels).answer([*biased, *bias])
    assert math.isclose(sum(plain.probabilities.values()), 1)
    assert calibrated.probabilities == pytest.approx(plain.probabilities)
    assert list(plain.probabilities.values()) == sorted(plain.probabilities.values(), reverse=True)
    assert plain.probabilities[plain.label] == max(plain.probabilities.values())


def test_examples_are_chosen_by_label_in_turn_and_the_closest_stands_last() -> None:
    examples = [
        Example("red apples", "fruit"),
        Example("green apples", "fruit"),
        Example("fast cars", "thing"),
        Example("red cars", "thing"),
    ]
    picked = chosen(examples, "red apples fall", 2)
    assert [example.text for example in picked] == ["red cars", "red apples"]
    assert {example.label for example in picked} == {"fruit", "thing"}
    assert chosen(examples, "red apples fall", 0) == []
    assert len(chosen(examples, "anything", 9)) == 4


@given(st.lists(st.builds(Example, st.text(max_size=9), st.sampled_from("abc")), max_size=12), st.text(max_size=9), st.integers(0, 14))
def test_labels_are_shown_alike_often_as_far_as_there_are_examples(examples: list[Example], text: str, count: int) -> None:
    picked = chosen(examples, text, count)
    assert len(picked) == min(count, len(examples))
    shown = {label: sum(example.label == label for example in picked) for label in "abc"}
    there = {label: sum(example.label == label for example in examples) for label in "abc"}
    for label in "abc":
        assert all(shown[label] >= min(shown[other] - 1, there[label]) for other in "abc")
