"""Few- and zero-shot classification on `score`: prompts made of a template and examples, and labels compared as continuations.

Pure: whoever uses it scores the pairs that `Question` asks for, and gives the log-likelihoods back.
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
    """How a prompt is written. asked: stands for one text, with {text} in it; a label follows after a space, then `between` the next one.

    nothing: the text of the null prompt, which has no content. instruction: stands before all.
    """

    asked: str = "Text: {text}\nLabel:"
    between: str = "\n\n"
    instruction: str = ""
    nothing: str = "N/A"

    def __post_init__(self) -> None:
        if self.asked.count("{text}") != 1:
            raise ValueError(f"asked: {self.asked!r} must have {{text}} in it once")

    def prompt(self, examples: Iterable[Example], text: str) -> str:
        """All examples with their labels, then the text without one."""
        shown = [f"{self._ask(example.text)} {example.label}" for example in examples]
        return self.instruction + self.between.join([*shown, self._ask(text)])

    def _ask(self, text: str) -> str:
        return self.asked.replace("{text}", text)


@dataclass(frozen=True, slots=True)
class Question:
    """One text to classify. calibrated: labels are held against what they are worth after the null prompt, with the same examples.

    Source: Zhao et al., "Calibrate Before Use: Improving Few-Shot Performance of Language Models", ICML 2021.
    """

    text: str
    labels: Sequence[str]
    examples: Sequence[Example] = ()
    template: Template = field(default_factory=Template)
    calibrated: bool = True

    def __post_init__(self) -> None:
        if len(set(self.labels)) < 2 or len(set(self.labels)) != len(self.labels) or not all(self.labels):
            raise ValueError(f"labels: got {list(self.labels)}, must be two or more different texts, none of them empty")

    def pairs(self) -> list[tuple[str, str]]:
        """What is to be scored: each label after the prompt and, calibrated, each after the null prompt."""
        texts = [self.text, self.template.nothing] if self.calibrated else [self.text]
        return [(self.template.prompt(self.examples, text), f" {label}") for text in texts for label in self.labels]

    def answer(self, log_likelihoods: Sequence[float]) -> "Answer":
        """log_likelihoods: of the pairs, in their order."""
        count = len(self.labels)
        if len(log_likelihoods) != len(self.pairs()):
            raise ValueError(f"{len(log_likelihoods)} log-likelihoods for {len(self.pairs())} pairs")
        given, null = log_likelihoods[:count], log_likelihoods[count:] or [0.0] * count
        worth = [one - other for one, other in zip(given, null, strict=True)]
        return Answer(dict(sorted(zip(self.labels, _softmax(worth), strict=True), key=lambda one: -one[1])))


@dataclass(frozen=True, slots=True)
class Answer:
    """probabilities: by label, the likeliest first; they sum to 1."""

    probabilities: dict[str, float]

    @property
    def label(self) -> str:
        """The likeliest."""
        return next(iter(self.probabilities))


def chosen(examples: Sequence[Example], text: str, count: int) -> list[Example]:
    """So many examples for a text: as many of each label as can be, those first that share most words with it, the closest last, since a
    model minds most what it read last.

    Source of the closeness: Jaccard's index of the sets of words.
    """
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda one: -_closeness(one.text, text)):
        by_label[example.label].append(example)
    rounds = [[group[place] for group in by_label.values() if place < len(group)] for place in range(len(examples))]
    taken = [example for each in rounds for example in each][:count]
    return sorted(taken, key=lambda one: _closeness(one.text, text))


def _closeness(one: str, other: str) -> float:
    words, others = set(_WORD.findall(one.lower())), set(_WORD.findall(other.lower()))
    return len(words & others) / len(words | others) if words | others else 0.0


def _softmax(values: Sequence[float]) -> list[float]:
    highest = max(values)
    weights = [math.exp(value - highest) for value in values]
    return [weight / sum(weights) for weight in weights]
