"""A task that the built-in model fails and an adapter masters: to say of a line of Python, from the standard library, what kind it is."""

import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_KINDS = {
    "def ": "function",
    "class ": "class",
    "import ": "import",
    "return ": "result",
    "for ": "loop",
    "if ": "condition",
    "raise ": "error",
    "with ": "context",
}
_OF_EACH = 100
_LONGEST = 60


@dataclass(frozen=True, slots=True)
class Question:
    """A line, and its kind."""

    line: str
    answer: str

    @property
    def asked(self) -> list[dict[str, str]]:
        """As a chat."""
        return [{"role": "user", "content": f"What is this line of Python? {self.line}"}]

    @property
    def example(self) -> dict[str, list[dict[str, str]]]:
        """As a row to learn from."""
        return {"messages": [*self.asked, {"role": "assistant", "content": self.answer}]}


def questions(seed: int = 0) -> list[Question]:
    """As many of each kind, in an order of the seed."""
    rng = random.Random(seed)
    found = sorted(set(_lines()))
    chosen = []
    for start, answer in _KINDS.items():
        lines = [line for line in found if line.startswith(start)]
        chosen += [Question(line, answer) for line in rng.sample(lines, _OF_EACH)]
    rng.shuffle(chosen)
    return chosen


def right_fraction(asked: Sequence[Question], answers: Sequence[str]) -> float:
    """Of the answers that are exactly right, but for spaces around them."""
    return sum(one.answer == answer.strip() for one, answer in zip(asked, answers, strict=True)) / len(asked)


def _lines() -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if len(line.strip()) <= _LONGEST:
                yield line.strip()
