"""The keeper of batch jobs: has Ray run what is in the database, follows the runs, and writes down what comes of them.

There is one in a cluster, beside the router. It remembers nothing: all that it needs is in the database, so that after a restart of it, of
Ray or of the whole cluster unfinished jobs go on. A run is in the database before Ray knows of it, and only who has put it there starts it;
so no job is run twice at a time, even where two keepers overlap.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import structlog

from deployments.jobs.access import Access
from deployments.jobs.bulk import BulkJob, entrypoint_of
from deployments.jobs.evaluate import arguments as evaluating
from deployments.jobs.evaluate.arguments import EvaluateJob
from deployments.jobs.finetune import arguments as finetuning
from deployments.jobs.finetune.arguments import FinetuneJob
from deployments.jobs.reports import read_report
from deployments.jobs.row_files import partial_of
from deployments.jobs.storage import joined, remove
from neox_serve.client import Tls
from neox_serve.core.errors import ServeError
from neox_serve.core.evaluating import EvaluateWork
from neox_serve.core.finetuning import FinetuneWork
from neox_serve.core.jobs import NO_REPORT, End, Job, JobState, Report, RowsWork, RunStatus, Start, Stop, Submit, next_step, to_start
from neox_serve.core.tenants import ANONYMOUS
from neox_serve.core.vector_target import VectorTarget
from neox_serve.link.streams import repeat
from neox_serve.settings import Settings, batch_folder, database_url, dialled
from neox_serve.settings.engines import ModelSettings
from neox_serve.tenancy.database import open_database
from neox_serve.tenancy.job_store import JobStore
from neox_serve.tenancy.tenant_store import TenantStore

_log = structlog.get_logger(__name__)

_ACTOR = "keeper of jobs"
_EVERY_S = 1.0
JOB_KEY = "neox_serve_batch_job"
"""In a run's metadata in Ray: the job that it is of."""


class Runs(Protocol):
    """Ray's runs. All raise RuntimeError where Ray cannot be asked."""

    def start(self, run_id: str, entrypoint: str, metadata: Mapping[str, str]) -> None:
        """Starts one."""

    def status(self, run_id: str) -> tuple[RunStatus, str]:
        """What has become of one, and Ray's words on it."""

    def stop(self, run_id: str) -> None:
        """Asks one to end."""


@dataclass(frozen=True, slots=True)
class Places:
    """What runs are told. folder: a path or URL; each tenant's files are in one of its name. notes: of the keeper's own files.

    address, tls: of a gateway. most_running: jobs at once. tasks: folder of tasks. model: what is served, and is fine-tuned.
    """

    folder: str
    notes: Path
    address: str
    tls: Tls | None = None
    most_running: int = 4
    tasks: Path | None = None
    model: ModelSettings = field(default_factory=ModelSettings)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """As they are set."""
        batch, gateway = settings.batch, settings.gateway
        tls = Tls(batch.tls_ca, batch.tls_certificate, batch.tls_key) if gateway.tls_certificate or batch.tls_ca else None
        address = batch.address or dialled(gateway.host, gateway.port)
        return cls(
            batch_folder(settings), settings.state_folder / "jobs", address, tls, batch.running_jobs, batch.tasks_folder, settings.model
        )

    def file(self, tenant: str, name: str) -> str:
        """Of a tenant. Only operators may have given absolute names, or URLs."""
        return joined(self.folder, tenant, name)

    def target(self, tenant: str, text: str) -> VectorTarget:
        """A vector database of a tenant's, likewise."""
        target = VectorTarget.parse(text)
        return replace(target, place=self.file(tenant, target.place))


class JobKeeper:
    """Calls block; `run` makes them off the event loop. clock: seconds since the epoch."""

    def __init__(self, store: JobStore, tenants: TenantStore, runs: Runs, places: Places, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._tenants = tenants
        self._runs = runs
        self._places = places
        self._clock = clock

    async def run(self) -> None:
        """Looks after the jobs for ever."""

        async def once() -> None:
            await asyncio.to_thread(self.look_after)

        await repeat(once, _EVERY_S)

    def look_after(self) -> None:
        """One round. What cannot be done for a job now is tried again in the next."""
        jobs = self._store.open_jobs()
        for job in jobs:
            if job.state is JobState.RUNNING:
                self._attempt(self._follow, job)
            elif job.cancel_asked:
                self._attempt(self._end, job, End(JobState.CANCELLED, "cancelled"))
        for job in to_start(jobs, self._places.most_running):
            self._attempt(self._start, job, Start())

    def _attempt(self, what: Callable[..., None], job: Job, *arguments: Any) -> None:
        try:
            what(job, *arguments)
        except (RuntimeError, OSError, ValueError, ServeError) as error:
            _log.warning("job_not_looked_after", job=job.job_id, failure=str(error))

    def _follow(self, job: Job) -> None:
        run, why = self._runs.status(job.run_id)
        report = read_report(self._report_file(job))
        job = self._note_progress(job, report)
        step = next_step(job, run, report, why)
        if isinstance(step, Start):
            self._start(job, step)
        elif isinstance(step, Submit):
            self._submit(job)
        elif isinstance(step, Stop):
            self._runs.stop(job.run_id)
        elif isinstance(step, End):
            self._end(job, step)

    def _note_progress(self, job: Job, report: Report) -> Job:
        if report.progress in {job.progress, NO_REPORT.progress}:
            return job
        job = replace(job, progress=report.progress)
        self._store.keep(job)
        return job

    def _start(self, job: Job, step: Start) -> None:
        runs = job.runs + 1
        job = replace(
            job,
            state=JobState.RUNNING,
            run_id=f"{job.job_id}-{runs}",
            runs=runs,
            fruitless_runs=step.fruitless,
            rows_before_run=job.progress.done,
            started_s=job.started_s or self._clock(),
        )
        if self._store.claim_run(job):
            self._report_file(job).unlink(missing_ok=True)
            self._submit(job)

    def _submit(self, job: Job) -> None:
        self._notes(job).mkdir(mode=0o700, parents=True, exist_ok=True)
        job = self._with_key(job)
        try:
            self._runs.start(job.run_id, self._entrypoint(job), {JOB_KEY: job.job_id, "tenant": job.tenant})
        except RuntimeError as error:
            self._say(job, f"Ray cannot start it, and is asked again: {error}")
        else:
            self._say(job, "")
            _log.info("job_run_started", job=job.job_id, tenant=job.tenant, run=job.run_id)

    def _say(self, job: Job, message: str) -> None:
        if message != job.message:
            self._store.keep(replace(job, message=message))
            if message:
                _log.warning("job_waits", job=job.job_id, tenant=job.tenant, why=message)

    def _with_key(self, job: Job) -> Job:
        """A key of the tenant's for this job alone, in a file that only this user reads; where the job makes calls."""
        file = self._key_file(job)
        if job.tenant == ANONYMOUS or isinstance(job.work, FinetuneWork) or (job.key_id and file.exists()):
            return job
        if job.key_id:
            self._tenants.revoke_key(job.key_id, _ACTOR)
        made, _ = self._tenants.add_key(job.tenant, _ACTOR, label=job.job_id)
        file.touch(mode=0o600)
        file.write_text(made.text, encoding="utf-8")
        job = replace(job, key_id=made.key_id)
        self._store.keep(job)
        return job

    def _end(self, job: Job, end: End) -> None:
        if job.key_id:
            self._tenants.revoke_key(job.key_id, _ACTOR)
        if end.state is JobState.CANCELLED:
            remove(self._leftovers(job))
        self._store.keep(replace(job, state=end.state, message=end.message, ended_s=self._clock()))
        shutil.rmtree(self._notes(job), ignore_errors=True)
        _log.info("job_ended", job=job.job_id, tenant=job.tenant, state=end.state.value, message=end.message)

    def _entrypoint(self, job: Job) -> str:
        if isinstance(job.work, FinetuneWork):
            return finetuning.entrypoint_of(self._finetune_job(job, job.work))
        if isinstance(job.work, EvaluateWork):
            return evaluating.entrypoint_of(self._evaluate_job(job, job.work))
        return entrypoint_of(self._bulk_job(job, job.work))

    def _leftovers(self, job: Job) -> str:
        """What a job has written that will not be finished."""
        if isinstance(job.work, FinetuneWork):
            return str(self._finetune_job(job, job.work).unfinished)
        return partial_of(self._places.file(job.tenant, job.work.output))

    def _finetune_job(self, job: Job, work: FinetuneWork) -> FinetuneJob:
        model = self._places.model
        if model.registry is None:
            raise ValueError("there is no registry of adapters any more (model.registry)")
        set_aside = self._places.file(job.tenant, work.set_aside) if work.set_aside else ""
        here = replace(work, input=self._places.file(job.tenant, work.input), set_aside=set_aside)
        return FinetuneJob(here, model.source, model.registry, model.revision, self._report_file(job), "auto")

    def _evaluate_job(self, job: Job, work: EvaluateWork) -> EvaluateJob:
        access = Access(self._places.address, self._places.tls, self._key_file(job) if job.key_id else None)
        here = replace(work, output=self._places.file(job.tenant, work.output))
        return EvaluateJob(here, access, self._places.tasks, self._notes(job) / "answers", report=self._report_file(job))

    def _bulk_job(self, job: Job, work: RowsWork) -> BulkJob:
        return BulkJob(
            kind=job.kind,
            input=self._places.file(job.tenant, work.input),
            output=self._places.file(job.tenant, work.output),
            address=self._places.address,
            job_id=job.job_id,
            concurrency=work.concurrency,
            defaults=work.options,
            set_aside=self._places.file(job.tenant, work.set_aside) if work.set_aside else None,
            patience_s=work.patience_s,
            tls=self._places.tls,
            api_key_file=self._key_file(job) if job.key_id else None,
            report=self._report_file(job),
            into=self._places.target(job.tenant, work.into) if work.into else None,
        )

    def _notes(self, job: Job) -> Path:
        return self._places.notes / job.job_id

    def _report_file(self, job: Job) -> Path:
        return self._notes(job) / "report.json"

    def _key_file(self, job: Job) -> Path:
        return self._notes(job) / "key"


@asynccontextmanager
async def open_keeper(settings: Settings, runs: Runs) -> AsyncIterator[JobKeeper]:
    """The cluster's keeper, with its database open as long as the block lasts. Raises SettingsError."""
    engine = await asyncio.to_thread(open_database, database_url(settings))
    try:
        yield JobKeeper(JobStore(engine), TenantStore(engine), runs, Places.from_settings(settings))
    finally:
        await asyncio.to_thread(engine.dispose)
