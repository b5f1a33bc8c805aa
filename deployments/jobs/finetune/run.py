"""The description of a fine-tuning run. Does not import torch, so that starting a run is quick."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deployments.jobs import run_documents
from neox_serve.core.jobs.finetune import FinetuneWork
from neox_serve.core.jobs.options import option

MODULE = "deployments.jobs.finetune"
"""The module that does the run."""


@dataclass(frozen=True, slots=True)
class FinetuneRun:
    """What a fine-tuning run does."""

    work: FinetuneWork
    """The work, with paths and URLs instead of names in the tenant's folder."""
    registry: Path = field(metadata=option("Folder of adapters that the cluster serves (model.registry)."))
    model: str = field(default="builtin", metadata=option('Model to fine-tune: "builtin", a folder or a name on the hub (model.source).'))
    revision: str | None = field(default=None, metadata=option("Revision of a model on the hub."))
    report: Path | None = field(default=None, metadata=option("File that receives the progress and the reason of a failure."))
    ray_address: str = field(
        default="local", metadata=option('Ray cluster in which several workers run: "auto", or "local" to start one on this machine.')
    )

    @property
    def output(self) -> Path:
        """The adapter's folder. It appears once it is complete."""
        return self.registry / self.work.adapter

    @property
    def unfinished(self) -> Path:
        """The folder of checkpoints, which exists until the adapter is published."""
        return self.output.with_name(f".{self.output.name}.partial")


def parse_arguments(arguments: Sequence[str] | None = None) -> FinetuneRun:
    """Returns the run that command line arguments describe. Exits with status 2 if they are wrong."""
    return run_documents.parse_arguments(FinetuneRun, MODULE, "Trains a LoRA adapter on examples.", arguments)
