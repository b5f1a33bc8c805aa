"""Prompts made of templates and examples, and labels compared by their likelihood."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.client.few_shot import Example, Question, Template, select_examples

LOG = st.floats(-50, 0)
SAD, GLAD = Example("it rained", "bad"), Example("the sun shone", "good")


def test_prompt_shows_examples_with_labels_and_the_text_without() -> None:
    template = Template(instruction="Judge.\n\n")
    assert template.prompt([SAD], "we won") == "Judge.\n\nText: it rained\nLabel: bad\n\nText: we won\nLabel:"
    assert Question("we won", ["bad", "good"], [SAD], template, calibrated=False).pairs() == [
        (template.prompt([SAD], "we won"), " bad"),
        (template.prompt([SAD], "we won"), " good"),
    ]


def test_text_with_braces_is_inserted_unchanged() -> None:
    assert Template().prompt([], "{text} {label}") == "Text: {text} {label}\nLabel:"


@pytest.mark.parametrize("item", ["no place", "{text} {text}"])
def test_template_without_exactly_one_text_is_refused(item: str) -> None:
    with pytest.raises(ValueError, match="template: "):
        Template(item)


@pytest.mark.parametrize("labels", [[], ["one"], ["same", "same"], ["", "other"]])
def test_labels_that_cannot_be_compared_are_refused(labels: list[str]) -> None:
    with pytest.raises(ValueError, match="labels: "):
        Question("t", labels)


@given(st.lists(LOG, min_size=2, max_size=5), st.data())
def test_calibration_removes_the_bias_of_labels(given_: list[float], data: st.DataObject) -> None:
    labels = [f"label {number}" for number in range(len(given_))]
    bias = data.draw(st.lists(LOG, min_size=len(given_), max_size=len(given_)))
    plain = Question("t", labels, calibrated=False).classify(given_)
    biased = [one + other for one, other in zip(given_, bias, strict=True)]
    calibrated = Question("t", labels).classify([*biased, *bias])
    assert math.isclose(sum(plain.probabilities.values()), 1)
    assert calibrated.probabilities == pytest.approx(plain.probabilities)
    assert list(plain.probabilities.values()) == sorted(plain.probabilities.values(), reverse=True)
    assert plain.probabilities[plain.label] == max(plain.probabilities.values())


def test_selected_examples_cover_the_labels_and_the_most_similar_is_last() -> None:
    examples = [
        Example("red apples", "fruit"),
        Example("green apples", "fruit"),
        Example("fast cars", "thing"),
        Example("red cars", "thing"),
    ]
    selected = select_examples(examples, "red apples fall", 2)
    assert [example.text for example in selected] == ["red cars", "red apples"]
    assert {example.label for example in selected} == {"fruit", "thing"}
    assert select_examples(examples, "red apples fall", 0) == []
    assert len(select_examples(examples, "anything", 9)) == 4


@given(st.lists(st.builds(Example, st.text(max_size=9), st.sampled_from("abc")), max_size=12), st.text(max_size=9), st.integers(0, 14))
def test_selected_examples_are_spread_evenly_over_the_labels(examples: list[Example], text: str, count: int) -> None:
    selected = select_examples(examples, text, count)
    assert len(selected) == min(count, len(examples))
    shown = {label: sum(example.label == label for example in selected) for label in "abc"}
    available = {label: sum(example.label == label for example in examples) for label in "abc"}
    for label in "abc":
        assert all(shown[label] >= min(shown[other] - 1, available[label]) for other in "abc")
