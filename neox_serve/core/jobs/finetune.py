"""Work of a job that trains a LoRA adapter of the served model."""

import re
from dataclasses import dataclass, field

from neox_serve.core.jobs.options import Between, FileKind, Matching, OneOf, option

FINETUNE = "finetune"
"""The kind of a job that trains an adapter."""
TARGETS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
"""The matrices of a GPT-NeoX layer that an adapter can change. Source: transformers' GPTNeoXLayer."""
MAX_RANK = 256
"""The largest rank of an adapter."""
ADAPTER_ALLOWED = "a name of [A-Za-z0-9._-] that starts with a letter or digit; with the tenant's name and a slash, at most 64 characters"
"""The names that an adapter can have, in words."""

_NAME = re.compile(r"(?=.{1,64}$)([a-z0-9][a-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class FinetuneWork:
    """Training of a LoRA adapter."""

    input: str = field(
        metadata=option(
            'JSONL file with one example per line: {"prompt": ..., "completion": ...} or {"messages": [...]}.',
            file=FileKind.FILE,
            positional=True,
        )
    )
    adapter: str = field(
        metadata=option(
            "Name of the adapter. It is served as TENANT/NAME, or as NAME if an operator trains it for all tenants.",
            Matching(_NAME, ADAPTER_ALLOWED),
            positional=True,
        )
    )
    rejects: str = field(
        default="",
        metadata=option(
            "File for rows that are not valid examples. Without it, one such row fails the job before it starts.", file=FileKind.FILE
        ),
    )
    rank: int = field(default=8, metadata=option("Rank of the matrices that are added.", Between(1, MAX_RANK)))
    alpha: float = field(
        default=16.0,
        metadata=option("The product of the added matrices is scaled by alpha / rank.", Between(0, 10_000, exclude_minimum=True)),
    )
    targets: tuple[str, ...] = field(
        default=TARGETS, metadata=option(f"Matrices that the adapter changes, of {','.join(TARGETS)}.", OneOf(TARGETS))
    )
    epochs: int = field(default=3, metadata=option("Maximum number of passes over the examples.", Between(1, 1_000)))
    learning_rate: float = field(
        default=1e-3, metadata=option("Peak learning rate, reached after 5 % of the steps.", Between(0, 1, exclude_minimum=True))
    )
    batch_tokens: int = field(default=4096, metadata=option("Approximate number of tokens per optimizer step.", Between(1, 1 << 24)))
    evaluation_fraction: float = field(
        default=0.1, metadata=option("Fraction of the examples that is held out of training for evaluation.", Between(0, 0.5))
    )
    early_stop_epochs: int = field(
        default=2,
        metadata=option("Stop after this many epochs without improvement (0 disables early stopping).", Between(0, 1_000)),
    )
    seed: int = field(default=0, metadata=option("Seed of the order of examples and of the initial weights.", Between(0, (1 << 31) - 1)))
    workers: int = field(default=1, metadata=option("Number of processes that train together.", Between(1, 64)))
