"""The description of an evaluation run. Does not import the evaluation harness, so that starting a run is quick."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deployments.jobs import run_documents
from deployments.jobs.access import Access
from neox_serve.core.jobs.evaluate import EvaluateWork
from neox_serve.core.jobs.options import Between, option

MODULE = "deployments.jobs.evaluate"
"""The module that does the run."""


@dataclass(frozen=True, slots=True)
class EvaluateRun:
    """What an evaluation run does. Raises ValueError if it has no address."""

    work: EvaluateWork
    """The work, with paths and URLs instead of names in the tenant's folder."""
    access: Access
    """The gateway to call."""
    tasks_folder: Path | None = field(
        default=None,
        metadata=option("Folder of tasks in addition to the harness's own. The tasks are executed as code."),
    )
    cache: Path | None = field(
        default=None, metadata=option("File in which answers are kept. The same command continues from there after an interruption.")
    )
    max_stall_s: float = field(
        default=600.0,
        metadata=option("Fail if no answer arrives for this many seconds.", Between(0, 7 * 86_400, exclude_minimum=True)),
    )
    report: Path | None = field(default=None, metadata=option("File that receives the progress and the reason of a failure."))

    def __post_init__(self) -> None:
        if not self.access.address:
            raise ValueError("--address must be given")


def parse_arguments(arguments: Sequence[str] | None = None) -> EvaluateRun:
    """Returns the run that command line arguments describe. Exits with status 2 if they are wrong."""
    return run_documents.parse_arguments(EvaluateRun, MODULE, "Evaluates what a cluster serves.", arguments)
