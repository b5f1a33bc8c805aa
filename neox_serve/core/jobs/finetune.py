"""What a fine-tuning job is asked for: a LoRA adapter of the served model, trained on examples. Pure; the training is a job's."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FINETUNE = "finetune"
"""The kind of such jobs."""
TARGETS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
"""A GPT-NeoX layer's matrices, which an adapter may add to. Source: transformers' GPTNeoXLayer."""
MAX_RANK = 256
_NAME = re.compile(r"(?=.{1,64}$)([a-z0-9][a-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*")

ADAPTER_ALLOWED = "a name of [A-Za-z0-9._-], the first a letter or digit, of 1 to 64 characters together with the tenant's and a slash"


@dataclass(frozen=True, slots=True)
class FinetuneWork:
    """An adapter to be trained. input, rejects: as in RowsWork. adapter: its name in the registry, under which it is served then.

    rank, alpha: of the added matrices, whose product is scaled by alpha / rank. batch_tokens: about so many tokens an optimizer step.
    evaluation_fraction: of the examples, kept out of training. early_stop_epochs: training ends when so many epochs in a row have not made
    the evaluation loss smaller; 0: never. workers: processes that train together, each on a share of every step.
    """

    input: str
    adapter: str
    rejects: str = ""
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    epochs: int = 3
    learning_rate: float = 1e-3
    batch_tokens: int = 4096
    evaluation_fraction: float = 0.1
    early_stop_epochs: int = 2
    seed: int = 0
    workers: int = 1

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "FinetuneWork":
        """From what `asdict` made of it, and JSON of that."""
        return cls(**{**values, "targets": tuple(values["targets"])})

    def problems(self) -> Iterator[tuple[str, object, str]]:
        """Every wrong field with its value and what is allowed."""
        checks = (
            ("adapter", bool(_NAME.fullmatch(self.adapter)), ADAPTER_ALLOWED),
            ("rank", 1 <= self.rank <= MAX_RANK, f"in [1, {MAX_RANK}]"),
            ("alpha", 0 < self.alpha <= 1e4, "in (0, 10000]"),
            ("targets", bool(self.targets) and set(self.targets) <= set(TARGETS), f"some of {', '.join(TARGETS)}"),
            ("epochs", 1 <= self.epochs <= 1_000, "in [1, 1000]"),
            ("learning_rate", 0 < self.learning_rate <= 1, "in (0, 1]"),
            ("batch_tokens", 1 <= self.batch_tokens <= 1 << 24, f"in [1, {1 << 24}]"),
            ("evaluation_fraction", 0 <= self.evaluation_fraction <= 0.5, "in [0, 0.5]"),
            ("early_stop_epochs", 0 <= self.early_stop_epochs <= 1_000, "in [0, 1000]"),
            ("seed", 0 <= self.seed < 1 << 31, f"in [0, {1 << 31})"),
            ("workers", 1 <= self.workers <= 64, "in [1, 64]"),
        )
        return ((name, getattr(self, name), allowed) for name, good, allowed in checks if not good)
