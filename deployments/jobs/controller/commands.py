"""What is run for each kind of job, and what to remove if the job is cancelled.

The controller resolves the names of a job's files, which are in its tenant's folder, and adds what a run needs to know of the cluster. The
result is the document of a run (see `deployments.jobs.run_documents`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from deployments.jobs.access import Access
from deployments.jobs.bulk import run as bulk
from deployments.jobs.bulk.row_files import partial_of
from deployments.jobs.bulk.rows import KINDS
from deployments.jobs.bulk.run import BulkRun
from deployments.jobs.evaluate import run as evaluate
from deployments.jobs.evaluate.run import EvaluateRun
from deployments.jobs.files.storage import joined
from deployments.jobs.finetune import run as finetune
from deployments.jobs.finetune.run import FinetuneRun
from deployments.jobs.quantize import run as quantize
from deployments.jobs.quantize.run import QuantizeRun
from neox_serve.core.jobs.evaluate import EvaluateWork
from neox_serve.core.jobs.finetune import FinetuneWork
from neox_serve.core.jobs.job import Job
from neox_serve.core.jobs.options import with_file_names
from neox_serve.core.jobs.quantize import QuantizeWork
from neox_serve.core.jobs.rows import RowsWork
from neox_serve.core.types import Pool
from neox_serve.settings import batch_folder
from neox_serve.settings.engines import ModelSettings
from neox_serve.settings.slices import COMPLETE_FILE_SUFFIX, JobControllerSettings, PoolEngineSettings

W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the controller knows of the cluster to start runs."""

    folder: str
    """Path or URL of the folder that contains a folder of files for each tenant."""
    state_folder: Path
    """Folder for the controller's own files, with a folder for each job."""
    access: Access
    """How runs reach a gateway, without credentials of a tenant."""
    max_running_jobs: int = 4
    """Maximum number of jobs that run at a time."""
    tasks_folder: Path | None = None
    """Folder of evaluation tasks; None if there is none."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """The model that is served, which is also fine-tuned and quantized."""
    engine_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of engines that runs start themselves, as plain values."""
    engine_gpus: Mapping[Pool, float] = field(default_factory=dict)
    """Number of GPUs that such an engine needs, by pool."""

    @classmethod
    def from_settings(cls, settings: JobControllerSettings) -> Self:
        """Returns what the cluster's settings say."""
        batch, address = settings.batch, settings.gateway_address
        return cls(
            batch_folder(settings),
            settings.state_folder / "jobs",
            Access(address, None, True, batch.tls_ca, batch.tls_certificate, batch.tls_key) if settings.gateway_tls else Access(address),
            batch.max_running_jobs,
            batch.tasks_folder,
            settings.engines.model,
            settings.engines.dump(),
            {pool: _gpus(PoolEngineSettings.from_settings(settings.engines, pool)) for pool in Pool},
        )

    def file(self, tenant: str, name: str) -> str:
        """Returns the path or URL of a tenant's file. Absolute names and URLs, which only operators can give, stay as they are."""
        return joined(self.folder, tenant, name)

    def job_folder(self, job: Job) -> Path:
        """Returns the folder of the controller's own files of a job."""
        return self.state_folder / job.job_id

    def report(self, job: Job) -> Path:
        """Returns the file in which a run reports its progress."""
        return self.job_folder(job) / "report.json"

    def document(self, job: Job) -> Path:
        """Returns the file that describes a run to its process."""
        return self.job_folder(job) / "run.json"

    def key(self, job: Job) -> Path:
        """Returns the file of the API key that a run presents."""
        return self.job_folder(job) / "key"

    def config(self, job: Job) -> Path:
        """Returns the settings file for the engines that a run starts itself."""
        return self.job_folder(job) / f"engines{COMPLETE_FILE_SUFFIX}"


@dataclass(frozen=True, slots=True)
class Command:
    """What is run for a job."""

    module: str
    """The module to start, as `python -m MODULE --job FILE`."""
    run: BulkRun | FinetuneRun | EvaluateRun | QuantizeRun
    """The content of that file."""
    leftovers: str
    """Path or URL of the unfinished output, which is removed if the job is cancelled."""
    engine: Pool | None = None
    """The pool whose kind of engine the run starts itself, with the settings in `RunSettings.config`; None if it starts none."""


def command_of(job: Job, settings: RunSettings) -> Command:
    """Returns what is run for a job. Raises ValueError if the cluster, as it is set up now, cannot do the job."""
    if isinstance(job.work, FinetuneWork):
        return _finetune(job, job.work, settings)
    if isinstance(job.work, EvaluateWork):
        return _evaluate(job, job.work, settings)
    if isinstance(job.work, QuantizeWork):
        return _quantize(job, job.work, settings)
    return _rows(job, job.work, settings)


def _finetune(job: Job, work: FinetuneWork, settings: RunSettings) -> Command:
    model = settings.model
    if model.registry is None:
        raise ValueError("the cluster has no registry of adapters any more (model.registry)")
    run = FinetuneRun(_located(job, work, settings), model.registry, model.source, model.revision, settings.report(job), "auto")
    return Command(finetune.MODULE, run, str(run.unfinished))


def _evaluate(job: Job, work: EvaluateWork, settings: RunSettings) -> Command:
    run = EvaluateRun(
        _located(job, work, settings),
        _access(job, settings),
        settings.tasks_folder,
        settings.job_folder(job) / "answers",
        report=settings.report(job),
    )
    return Command(evaluate.MODULE, run, partial_of(run.work.output))


def _quantize(job: Job, work: QuantizeWork, settings: RunSettings) -> Command:
    config = settings.config(job) if work.serve_tokens else None
    run = QuantizeRun(_located(job, work, settings), settings.model.source, settings.model.revision, config, settings.report(job))
    return Command(quantize.MODULE, run, str(run.unfinished), Pool.GENERATION if work.serve_tokens else None)


def _rows(job: Job, work: RowsWork, settings: RunSettings) -> Command:
    run = BulkRun(
        job.kind,
        _located(job, work, settings),
        job.job_id,
        Access() if work.own_engine else _access(job, settings),
        settings.report(job),
        settings.config(job) if work.own_engine else None,
    )
    return Command(bulk.MODULE, run, partial_of(run.work.output), KINDS[job.kind].pool if work.own_engine else None)


def _located(job: Job, work: W, settings: RunSettings) -> W:
    """Returns the work with paths and URLs instead of names in the tenant's folder."""
    return with_file_names(work, lambda name: settings.file(job.tenant, name))


def _access(job: Job, settings: RunSettings) -> Access:
    return replace(settings.access, api_key_file=settings.key(job) if job.key_id else None)


def _gpus(settings: PoolEngineSettings) -> float:
    return float(settings.engine.workers) if settings.on_gpu else 0.0
