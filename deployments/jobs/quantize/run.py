"""The description of a quantization run. Does not import torch, so that starting a run is quick."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deployments.jobs import run_documents
from neox_serve.core.jobs.options import option
from neox_serve.core.jobs.quantize import QuantizeWork

MODULE = "deployments.jobs.quantize"
"""The module that does the run."""


@dataclass(frozen=True, slots=True)
class QuantizeRun:
    """What a quantization run does."""

    work: QuantizeWork
    """The work, with paths and URLs instead of names in the tenant's folder."""
    model: str = field(default="builtin", metadata=option('Model to quantize: "builtin", a folder or a name on the hub (model.source).'))
    revision: str | None = field(default=None, metadata=option("Revision of a model on the hub."))
    config: Path | None = field(default=None, metadata=option("Settings file of neox-serve, for the engines that --serve-tokens starts."))
    report: Path | None = field(default=None, metadata=option("File that receives the progress and the reason of a failure."))

    @property
    def output(self) -> Path:
        """The checkpoint's folder. It appears once it is complete."""
        return Path(self.work.output)

    @property
    def unfinished(self) -> Path:
        """The folder of the layers that are done, which exists until the checkpoint is complete."""
        return self.output.with_name(f".{self.output.name}.partial")


def parse_arguments(arguments: Sequence[str] | None = None) -> QuantizeRun:
    """Returns the run that command line arguments describe. Exits with status 2 if they are wrong."""
    return run_documents.parse_arguments(QuantizeRun, MODULE, "Quantizes a checkpoint.", arguments)
