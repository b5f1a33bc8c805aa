"""What an evaluation job is asked for: scores of the served model, or of an adapter, on tasks. Pure; the measuring is a job's."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

EVALUATE = "evaluate"
"""The kind of such jobs."""
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_TASKS = 100
AS_TASKS_HAVE_IT = -1
"""Of the number of examples."""


@dataclass(frozen=True, slots=True)
class EvaluateWork:
    """tasks: by the names that lm-evaluation-harness has for them. output: file that gets the results. adapter: empty for the model itself.

    shots: examples in each prompt, or AS_TASKS_HAVE_IT. limit: questions of each task; 0: all. concurrency: requests in flight.
    """

    tasks: tuple[str, ...]
    output: str
    adapter: str = ""
    shots: int = AS_TASKS_HAVE_IT
    limit: int = 0
    concurrency: int = 8

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "EvaluateWork":
        """From what `asdict` made of it, and JSON of that."""
        return cls(**{**values, "tasks": tuple(values["tasks"])})

    def problems(self) -> Iterator[tuple[str, object, str]]:
        """Every wrong field with its value and what is allowed."""
        checks = (
            ("tasks", 1 <= len(self.tasks) <= MAX_TASKS, f"1 to {MAX_TASKS} names"),
            ("tasks", all(_TASK.fullmatch(task) for task in self.tasks), "names of [A-Za-z0-9._-], the first a letter or digit"),
            ("shots", AS_TASKS_HAVE_IT <= self.shots <= 100, "in [0, 100]"),
            ("limit", 0 <= self.limit < 1 << 31, f"in [0, {1 << 31})"),
            ("concurrency", 1 <= self.concurrency <= 1024, "in [1, 1024]"),
        )
        return ((name, getattr(self, name), allowed) for name, good, allowed in checks if not good)
