"""Few-shot and zero-shot classification on top of `score`: labels are compared as continuations of a prompt.

Pure: the caller scores the pairs that `Question.pairs` returns, and passes the log-likelihoods to `Question.classify`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Example:
    """A text whose label is known."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Template:
    """How a prompt is written: the instruction, the examples with their labels, and the text to classify."""

    item: str = "Text: {text}\nLabel:"
    """Prompt for one text, with {text} in its place. A space and the label follow it."""
    separator: str = "\n\n"
    """Stands between two items."""
    instruction: str = ""
    """Stands before the first item."""
    null_text: str = "N/A"
    """Text without content, for calibration."""

    def __post_init__(self) -> None:
        if self.item.count("{text}") != 1:
            raise ValueError(f"template: {self.item!r} is invalid; it must contain {{text}} exactly once")

    def prompt(self, examples: Iterable[Example], text: str) -> str:
        """The prompt with all examples and their labels, then the text without a label."""
        shown = [f"{self._item(example.text)} {example.label}" for example in examples]
        return self.instruction + self.separator.join([*shown, self._item(text)])

    def _item(self, text: str) -> str:
        return self.item.replace("{text}", text)


@dataclass(frozen=True, slots=True)
class Question:
    """One text to classify."""

    text: str
    labels: Sequence[str]
    """Two or more different labels."""
    examples: Sequence[Example] = ()
    """Shown in the prompt, in this order; empty for zero-shot classification."""
    template: Template = field(default_factory=Template)
    calibrated: bool = True
    """Subtract each label's log-likelihood after a prompt without content, so that a label is not preferred for its own sake.

    Source: Zhao et al., "Calibrate Before Use: Improving Few-Shot Performance of Language Models", ICML 2021.
    """

    def __post_init__(self) -> None:
        if len(set(self.labels)) < 2 or len(set(self.labels)) != len(self.labels) or not all(self.labels):
            raise ValueError(f"labels: {list(self.labels)} is invalid; there must be two or more labels, all different and none empty")

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of context and continuation to score: each label after the prompt and, if calibrated, after one without content."""
        texts = [self.text, self.template.null_text] if self.calibrated else [self.text]
        return [(self.template.prompt(self.examples, text), f" {label}") for text in texts for label in self.labels]

    def classify(self, log_likelihoods: Sequence[float]) -> "Classification":
        """The result, from the log-likelihood of each pair in the order of `pairs`. Raises ValueError if their number differs."""
        count = len(self.labels)
        if len(log_likelihoods) != len(self.pairs()):
            raise ValueError(f"got {len(log_likelihoods)} log-likelihoods for {len(self.pairs())} pairs")
        given, null = log_likelihoods[:count], log_likelihoods[count:] or [0.0] * count
        gains = [one - other for one, other in zip(given, null, strict=True)]
        return Classification(dict(sorted(zip(self.labels, _softmax(gains), strict=True), key=lambda item: -item[1])))


@dataclass(frozen=True, slots=True)
class Classification:
    """The result for one text."""

    probabilities: dict[str, float]
    """By label, the most likely first; they sum to 1."""

    @property
    def label(self) -> str:
        """The most likely label."""
        return next(iter(self.probabilities))


def select_examples(examples: Sequence[Example], text: str, count: int) -> list[Example]:
    """Up to `count` examples for a text, spread evenly over the labels; within a label, those most similar to the text.

    The most similar example comes last, since models weigh the end of a prompt most. Similarity is the Jaccard index of the sets of words.
    """
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda each: -_similarity(each.text, text)):
        by_label[example.label].append(example)
    rounds = [[group[rank] for group in by_label.values() if rank < len(group)] for rank in range(len(examples))]
    selected = [example for each in rounds for example in each][:count]
    return sorted(selected, key=lambda each: _similarity(each.text, text))


def _similarity(one: str, other: str) -> float:
    words, others = set(_WORD.findall(one.lower())), set(_WORD.findall(other.lower()))
    return len(words & others) / len(words | others) if words | others else 0.0


def _softmax(values: Sequence[float]) -> list[float]:
    highest = max(values)
    weights = [math.exp(value - highest) for value in values]
    return [weight / sum(weights) for weight in weights]
