"""The description of a bulk run: one request for each row of a file. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deployments.jobs import run_documents
from deployments.jobs.access import Access
from neox_serve.core.jobs.options import OneOf, option
from neox_serve.core.jobs.rows import EMBED, GENERATE, RowsWork

MODULE = "deployments.jobs.bulk"
"""The module that does the run."""


@dataclass(frozen=True, slots=True)
class BulkRun:
    """What a bulk run does. Raises ValueError if it has neither or both of an address and an own engine."""

    kind: str = field(metadata=option("What to do with each row.", OneOf((EMBED, GENERATE)), positional=True))
    work: RowsWork
    """The work, with paths and URLs instead of names in the tenant's folder."""
    job_id: str = field(default="bulk", metadata=option("Prefix of the request ids of all rows."))
    access: Access = field(default_factory=Access)
    """The gateway to call, unless the run starts its own engine."""
    report: Path | None = field(default=None, metadata=option("File that receives the progress and the reason of a failure."))
    config: Path | None = field(default=None, metadata=option("Settings file of neox-serve, for the run's own engine."))

    def __post_init__(self) -> None:
        if bool(self.access.address) == self.work.own_engine:
            raise ValueError("exactly one of --address and --own-engine must be given")
        if self.work.into and self.kind != EMBED:
            raise ValueError("--into can only be used with embed, since other rows have no vectors")


def parse_arguments(arguments: Sequence[str] | None = None) -> BulkRun:
    """Returns the run that command line arguments describe. Exits with status 2 if they are wrong."""
    return run_documents.parse_arguments(BulkRun, MODULE, "Completes or embeds every row of a file.", arguments)
