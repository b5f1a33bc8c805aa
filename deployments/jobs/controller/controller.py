"""The job controller: has Ray do the jobs that are in the database, follows their runs and records the results.

A cluster has one job controller, beside the router. All its state is in the database, so unfinished jobs continue after a restart of the
controller, of Ray or of the whole cluster. A run is written to the database before it is submitted to Ray, and only the controller that
wrote it submits it. Therefore no job is ever run twice at the same time, even if two controllers overlap.
"""

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import structlog

from deployments.jobs import run_documents
from deployments.jobs.controller.accounts import Accounts, TokenQuotas
from deployments.jobs.controller.commands import RunSettings, command_of
from deployments.jobs.files.storage import remove
from deployments.jobs.reports import read_report
from neox_serve.core.errors import ServeError
from neox_serve.core.jobs.job import (
    NO_REPORT,
    End,
    Job,
    JobLog,
    JobState,
    Report,
    RunStatus,
    Start,
    Stop,
    Submit,
    Wait,
    jobs_to_start,
    next_step,
)
from neox_serve.core.jobs.work import makes_calls
from neox_serve.core.tenancy.tenants import ANONYMOUS
from neox_serve.link.streams import repeat
from neox_serve.settings import database_url, secret_file
from neox_serve.settings.slices import JobControllerSettings, RouterProcessSettings
from neox_serve.tenancy.database import open_database
from neox_serve.tenancy.job_store import JobStore
from neox_serve.tenancy.platform import read_secret
from neox_serve.tenancy.tenant_store import TenantStore
from neox_serve.tenancy.usage_store import UsageStore

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_ACTOR = "job controller"
_INTERVAL_S = 1.0
_LOG_INTERVAL_S = 3.0
JOB_KEY = "neox_serve_batch_job"
"""Key of the job id in the metadata of a run in Ray."""


class Runs(Protocol):
    """Runs in Ray. All methods raise RuntimeError if Ray cannot be reached."""

    def start(self, run_id: str, entrypoint: str, metadata: Mapping[str, str], gpus: float) -> None:
        """Starts a run that needs `gpus` GPUs. `entrypoint` is a shell command."""

    def status(self, run_id: str) -> tuple[RunStatus, str]:
        """Returns the status of a run and Ray's message about it."""

    def stop(self, run_id: str) -> None:
        """Asks a run to stop."""

    def log(self, run_id: str) -> str:
        """Returns what a run has written so far."""


class JobController:
    """Starts, follows and ends jobs."""

    def __init__(
        self,
        store: JobStore,
        tenants: TenantStore,
        runs: Runs,
        settings: RunSettings,
        accounts: Accounts,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` returns seconds since the epoch."""
        self._store = store
        self._tenants = tenants
        self._runs = runs
        self._settings = settings
        self._accounts = accounts
        self._clock = clock
        self._logs_due_s: dict[str, float] = {}

    def reconfigure(self, settings: JobControllerSettings) -> None:
        """Uses changed settings for the runs that are started from now on."""
        self._settings = RunSettings.from_settings(settings)

    async def run(self) -> None:
        """Reconciles jobs every second, off the event loop, until it is cancelled."""

        async def once() -> None:
            await asyncio.to_thread(self.reconcile)

        await repeat(once, _INTERVAL_S)

    def reconcile(self) -> None:
        """Does what is next for every job that has not ended. What fails now is tried again in the next round. Blocks."""
        jobs = self._store.open_jobs()
        for job in jobs:
            if job.state is JobState.RUNNING:
                self._attempt(self._follow, job)
            elif job.cancel_requested:
                self._attempt(self._end, job, End(JobState.CANCELLED, "cancelled"))
        ready = [job for job in jobs if job.state is JobState.RUNNING or self._attempt(self._may_start, job)]
        for job in jobs_to_start(ready, self._settings.max_running_jobs):
            self._attempt(self._start, job, Start())

    def _may_start(self, job: Job) -> bool:
        """Returns whether the tenant's quotas allow a queued job to start.

        The usage of a run that makes no calls is only known when it ends, so such a job waits while a quota is used up.
        """
        if makes_calls(job.work) or job.tenant == ANONYMOUS:
            return True
        names = self._accounts.used_up(self._tenants.tenant(job.tenant))
        message = f"{', '.join(names)} is used up; the job starts when the quota has tokens again" if names else ""
        if message != job.message:
            self._store.update_queue_message(job, message)
        return not names

    def _attempt(self, step: Callable[..., T], job: Job, *arguments: Any) -> T | None:
        """Calls a step for a job. Returns its result, or None if it failed."""
        try:
            return step(job, *arguments)
        except (RuntimeError, OSError, ValueError, ServeError) as error:
            _log.warning("job_step_failed", job=job.job_id, failure=str(error))
            return None

    def _follow(self, job: Job) -> None:
        run, status_message = self._runs.status(job.run_id)
        report = read_report(self._settings.report(job))
        job = self._record_progress(job, report)
        step = next_step(job, run, report, status_message)
        self._record_log(job, at_once=not isinstance(step, Wait))
        if isinstance(step, Start | End):
            succeeded = isinstance(step, End) and step.state is JobState.SUCCEEDED
            self._accounts.record_run(job, "OK" if succeeded else run.value, self._clock())
        if isinstance(step, Start):
            self._start(job, step)
        elif isinstance(step, Submit):
            self._submit(job)
        elif isinstance(step, Stop):
            self._runs.stop(job.run_id)
        elif isinstance(step, End):
            self._end(job, step)

    def _record_progress(self, job: Job, report: Report) -> Job:
        if report.progress in {job.progress, NO_REPORT.progress}:
            return job
        job = replace(job, progress=report.progress)
        self._store.update(job)
        return job

    def _record_log(self, job: Job, *, at_once: bool) -> None:
        """Stores the log of the current run for its tenant; unless `at_once`, only every few seconds."""
        if at_once or self._clock() >= self._logs_due_s.get(job.job_id, 0.0):
            self._logs_due_s[job.job_id] = self._clock() + _LOG_INTERVAL_S
            with contextlib.suppress(RuntimeError, OSError):  # Ray has no log of a run that it does not know; the next round finds out
                self._store.update_log(job, JobLog.of(job.run_id, self._runs.log(job.run_id)))

    def _start(self, job: Job, step: Start) -> None:
        runs = job.runs + 1
        job = replace(
            job,
            state=JobState.RUNNING,
            run_id=f"{job.job_id}-{runs}",
            runs=runs,
            runs_without_progress=step.runs_without_progress,
            rows_before_run=job.progress.done,
            started_s=job.started_s or self._clock(),
        )
        if self._store.claim_run(job):
            self._settings.report(job).unlink(missing_ok=True)
            self._submit(job)

    def _submit(self, job: Job) -> None:
        self._settings.job_folder(job).mkdir(mode=0o700, parents=True, exist_ok=True)
        job = self._with_key(job)
        try:
            command = command_of(job, self._settings)
        except ValueError as error:
            return self._end(job, End(JobState.FAILED, f"the cluster cannot do this job any more: {error}"))
        gpus = 0.0
        if command.engine is not None:
            gpus = self._settings.engine_gpus.get(command.engine, 0.0)
            self._settings.config(job).write_text(json.dumps(self._settings.engine_settings), encoding="utf-8")
        document = self._settings.document(job)
        run_documents.write(command.run, document)
        entrypoint = run_documents.command_line(command.module, document)
        try:
            self._runs.start(job.run_id, entrypoint, {JOB_KEY: job.job_id, "tenant": job.tenant}, gpus)
        except RuntimeError as error:
            self._set_message(job, f"Ray cannot start the run yet, and is asked again: {error}")
        else:
            self._set_message(job, "")
            _log.info("job_run_started", job=job.job_id, tenant=job.tenant, run=job.run_id)

    def _set_message(self, job: Job, message: str) -> None:
        if message != job.message:
            self._store.update(replace(job, message=message))
            if message:
                _log.warning("job_run_delayed", job=job.job_id, tenant=job.tenant, reason=message)

    def _with_key(self, job: Job) -> Job:
        """If the job makes calls, gives it an API key of its tenant, in a file that only this user can read."""
        file = self._settings.key(job)
        if job.tenant == ANONYMOUS or not makes_calls(job.work) or (job.key_id and file.exists()):
            return job
        if job.key_id:
            self._tenants.revoke_key(job.key_id, _ACTOR)
        made, _ = self._tenants.add_key(job.tenant, _ACTOR, label=job.job_id)
        file.touch(mode=0o600)
        file.write_text(made.text, encoding="utf-8")
        job = replace(job, key_id=made.key_id)
        self._store.update(job)
        return job

    def _end(self, job: Job, end: End) -> None:
        if job.key_id:
            self._tenants.revoke_key(job.key_id, _ACTOR)
        if end.state is JobState.CANCELLED:
            with contextlib.suppress(ValueError):  # the cluster cannot do the job any more, so the location is unknown
                remove(command_of(job, self._settings).leftovers)
        self._store.update(replace(job, state=end.state, message=end.message, ended_s=self._clock()))
        shutil.rmtree(self._settings.job_folder(job), ignore_errors=True)
        self._logs_due_s.pop(job.job_id, None)
        _log.info("job_ended", job=job.job_id, tenant=job.tenant, state=end.state.value, message=end.message)


@asynccontextmanager
async def open_controller(
    settings: RouterProcessSettings, jobs: JobControllerSettings, runs: Runs, quotas: TokenQuotas
) -> AsyncIterator[JobController]:
    """Opens the cluster's job controller, with its database, for the duration of the block. Raises SettingsError."""
    secret = await asyncio.to_thread(read_secret, secret_file(settings), create=settings.access.secret_file is None)
    database = await asyncio.to_thread(open_database, database_url(settings))
    try:
        accounts = Accounts(UsageStore(database), secret, settings.model_name, quotas)
        yield JobController(JobStore(database), TenantStore(database), runs, RunSettings.from_settings(jobs), accounts)
    finally:
        await asyncio.to_thread(database.dispose)
