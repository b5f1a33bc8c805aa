"""Work of a job that evaluates the served model, or an adapter, on benchmark tasks."""

import re
from dataclasses import dataclass, field

from neox_serve.core.jobs.options import Between, Count, FileKind, Matching, option

EVALUATE = "evaluate"
"""The kind of a job that evaluates what is served."""
MAX_TASKS = 100
"""The largest number of tasks of one job."""

_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class EvaluateWork:
    """Evaluation on tasks of lm-evaluation-harness."""

    tasks: tuple[str, ...] = field(
        metadata=option(
            "Names of tasks of lm-evaluation-harness.",
            Count(1, MAX_TASKS),
            Matching(_TASK, "names of [A-Za-z0-9._-] that start with a letter or digit"),
            positional=True,
        )
    )
    output: str = field(metadata=option("JSON file for the results, in the harness's format.", file=FileKind.FILE, positional=True))
    adapter: str = field(default="", metadata=option("LoRA adapter to evaluate. Without it, the model itself is evaluated."))
    shots: int | None = field(
        default=None, metadata=option("Number of examples in each prompt. Without it, each task's own number is used.", Between(0, 100))
    )
    limit: int = field(default=0, metadata=option("Maximum number of questions per task (0: all).", Between(0, (1 << 31) - 1)))
    concurrency: int = field(default=8, metadata=option("Number of requests in flight.", Between(1, 1_024)))
