"""What each kind of job runs, where its files are, and what it leaves where it is not finished."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from deployments.jobs.access import Access
from deployments.jobs.bulk import job as bulk
from deployments.jobs.bulk.job import BulkJob
from deployments.jobs.bulk.row_files import partial_of
from deployments.jobs.bulk.rows import KINDS
from deployments.jobs.evaluate import arguments as evaluating
from deployments.jobs.evaluate.arguments import EvaluateJob
from deployments.jobs.files.storage import joined
from deployments.jobs.finetune import arguments as finetuning
from deployments.jobs.finetune.arguments import FinetuneJob, unfinished_of
from deployments.jobs.quantize import arguments as quantizing
from deployments.jobs.quantize.arguments import QuantizeJob
from neox_serve.client import Tls
from neox_serve.core.jobs.evaluate import EvaluateWork
from neox_serve.core.jobs.finetune import FinetuneWork
from neox_serve.core.jobs.job import Job, RowsWork
from neox_serve.core.jobs.quantize import QuantizeWork
from neox_serve.core.jobs.vector_target import VectorTarget
from neox_serve.core.types import Pool
from neox_serve.settings import batch_folder
from neox_serve.settings.engines import ModelSettings
from neox_serve.settings.slices import COMPLETE_FILE_SUFFIX, JobControllerSettings, PoolEngineSettings


@dataclass(frozen=True, slots=True)
class Places:
    """What runs are told. folder: a path or URL; each tenant's files are in one of its name. notes: of the controller's own files.

    address, tls: of a gateway. max_running_jobs: jobs at once. tasks: folder of tasks. model: what is served, and is fine-tuned.
    engines: settings of those that jobs start for themselves. engine_gpus: that one of them takes, by pool.
    """

    folder: str
    notes: Path
    address: str
    tls: Tls | None = None
    max_running_jobs: int = 4
    tasks: Path | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    engines: Mapping[str, Any] = field(default_factory=dict)
    engine_gpus: Mapping[Pool, float] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, settings: JobControllerSettings) -> Self:
        """As they are set."""
        batch = settings.batch
        tls = Tls(batch.tls_ca, batch.tls_certificate, batch.tls_key) if settings.gateway_tls else None
        return cls(
            batch_folder(settings),
            settings.state_folder / "jobs",
            settings.gateway_address,
            tls,
            batch.max_running_jobs,
            batch.tasks_folder,
            settings.engines.model,
            settings.engines.dump(),
            {pool: _gpus(PoolEngineSettings.from_settings(settings.engines, pool)) for pool in Pool},
        )

    def file(self, tenant: str, name: str) -> str:
        """Of a tenant. Only operators may have given absolute names, or URLs."""
        return joined(self.folder, tenant, name)

    def target(self, tenant: str, text: str) -> VectorTarget:
        """A vector database of a tenant's, likewise."""
        target = VectorTarget.parse(text)
        return replace(target, place=self.file(tenant, target.place))

    def notes_of(self, job: Job) -> Path:
        """The controller's own files of a job."""
        return self.notes / job.job_id

    def report(self, job: Job) -> Path:
        """What its run says of itself."""
        return self.notes_of(job) / "report.json"

    def key(self, job: Job) -> Path:
        """The credential that its run shows."""
        return self.notes_of(job) / "key"

    def config(self, job: Job) -> Path:
        """Settings of its own engines."""
        return self.notes_of(job) / f"engines{COMPLETE_FILE_SUFFIX}"


@dataclass(frozen=True, slots=True)
class Command:
    """line: for a shell. leftovers: what it has written that will not be finished, if it is not run again; a path or URL.

    engine: the pool of which it starts engines for itself, by the settings in `Places.config`; None where it does not.
    """

    line: str
    leftovers: str
    engine: Pool | None = None


def command_of(job: Job, places: Places) -> Command:
    """What is run for a job. Raises ValueError where the cluster cannot do it as it is set up now."""
    if isinstance(job.work, FinetuneWork):
        return _finetune(job, job.work, places)
    if isinstance(job.work, EvaluateWork):
        return _evaluate(job, job.work, places)
    if isinstance(job.work, QuantizeWork):
        return _quantize(job, job.work, places)
    return _rows(job, job.work, places)


def _finetune(job: Job, work: FinetuneWork, places: Places) -> Command:
    model = places.model
    if model.registry is None:
        raise ValueError("there is no registry of adapters any more (model.registry)")
    rejects = places.file(job.tenant, work.rejects) if work.rejects else ""
    here = replace(work, input=places.file(job.tenant, work.input), rejects=rejects)
    told = FinetuneJob(here, model.source, model.registry, model.revision, places.report(job), "auto")
    return Command(finetuning.entrypoint_of(told), str(unfinished_of(told.output)))


def _evaluate(job: Job, work: EvaluateWork, places: Places) -> Command:
    access = Access(places.address, places.tls, places.key(job) if job.key_id else None)
    here = replace(work, output=places.file(job.tenant, work.output))
    told = EvaluateJob(here, access, places.tasks, places.notes_of(job) / "answers", report=places.report(job))
    return Command(evaluating.entrypoint_of(told), partial_of(here.output))


def _quantize(job: Job, work: QuantizeWork, places: Places) -> Command:
    output, calibration, held_out = (places.file(job.tenant, name) for name in (work.output, work.calibration, work.held_out))
    here = replace(work, output=output, calibration=calibration, held_out=held_out)
    config = places.config(job) if work.serve_tokens else None
    told = QuantizeJob(here, places.model.source, places.model.revision, config, places.report(job))
    return Command(quantizing.entrypoint_of(told), str(told.unfinished), Pool.GENERATION if work.serve_tokens else None)


def _rows(job: Job, work: RowsWork, places: Places) -> Command:
    told = BulkJob(
        kind=job.kind,
        input=places.file(job.tenant, work.input),
        output=places.file(job.tenant, work.output),
        address="" if work.own_engine else places.address,
        job_id=job.job_id,
        concurrency=work.concurrency,
        defaults=work.options,
        rejects=places.file(job.tenant, work.rejects) if work.rejects else None,
        max_stall_s=work.max_stall_s,
        tls=None if work.own_engine else places.tls,
        api_key_file=places.key(job) if job.key_id else None,
        report=places.report(job),
        into=places.target(job.tenant, work.into) if work.into else None,
        own_engine=work.own_engine,
        config=places.config(job) if work.own_engine else None,
    )
    return Command(bulk.entrypoint_of(told), partial_of(told.output), KINDS[job.kind].pool if work.own_engine else None)


def _gpus(settings: PoolEngineSettings) -> float:
    return float(settings.engine.workers) if settings.on_gpu else 0.0
