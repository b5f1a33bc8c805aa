"""Work of a job that makes one request for each row of a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neox_serve.core.jobs.options import Between, FileKind, option
from neox_serve.core.jobs.vector_target import ALLOWED

GENERATE = "generate"
"""The kind of a job that completes the prompt of each row."""
EMBED = "embed"
"""The kind of a job that turns the text of each row into a vector."""


@dataclass(frozen=True, slots=True)
class RowsWork:
    """One request for each row of a file."""

    input: str = field(
        metadata=option(
            "JSONL file with one request per line, or Parquet if the name ends in .parquet.", file=FileKind.FILE, positional=True
        )
    )
    output: str = field(
        metadata=option(
            "JSONL or Parquet file for the results, in the order of the input. It appears once all rows are complete.",
            file=FileKind.FILE,
            positional=True,
        )
    )
    options: Mapping[str, Any] = field(
        default_factory=dict, metadata=option("JSON object of request options for rows that do not set them.")
    )
    rejects: str = field(
        default="",
        metadata=option(
            "File for rows that are not valid requests. Without it, one such row fails the job before it starts.", file=FileKind.FILE
        ),
    )
    concurrency: int = field(default=32, metadata=option("Number of requests in flight.", Between(1, 1_024)))
    max_stall_s: float = field(
        default=600.0,
        metadata=option("Fail if no row completes for this many seconds.", Between(0, 7 * 86_400, exclude_minimum=True)),
    )
    into: str = field(
        default="",
        metadata=option(f"Vector database that also receives the vectors (embed only): {ALLOWED}.", file=FileKind.VECTOR_TARGET),
    )
    own_engine: bool = field(
        default=False,
        metadata=option("Start an engine for this job instead of calling the cluster (operators only).", operator_only=True),
    )
