"""The job controller: has Ray run what is in the database, follows the runs, and writes down what comes of them.

There is one in a cluster, beside the router. It remembers nothing: all that it needs is in the database, so that after a restart of it, of
Ray or of the whole cluster unfinished jobs go on. A run is in the database before Ray knows of it, and only who has put it there starts it;
so no job is run twice at a time, even where two controllers overlap.
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

from deployments.jobs.controller.accounts import Accounts, TokenQuotas
from deployments.jobs.controller.commands import Places, command_of
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
    makes_calls,
    next_step,
    to_start,
)
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
_EVERY_S = 1.0
_LOG_EVERY_S = 3.0
JOB_KEY = "neox_serve_batch_job"
"""In a run's metadata in Ray: the job that it is of."""


class Runs(Protocol):
    """Ray's runs. All raise RuntimeError where Ray cannot be asked."""

    def start(self, run_id: str, entrypoint: str, metadata: Mapping[str, str], gpus: float) -> None:
        """Starts one, which takes so many GPUs."""

    def status(self, run_id: str) -> tuple[RunStatus, str]:
        """What has become of one, and Ray's words on it."""

    def stop(self, run_id: str) -> None:
        """Asks one to end."""

    def log(self, run_id: str) -> str:
        """What one has written so far."""


class JobController:
    """Calls block; `run` makes them off the event loop. clock: seconds since the epoch."""

    def __init__(
        self,
        store: JobStore,
        tenants: TenantStore,
        runs: Runs,
        places: Places,
        accounts: Accounts,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._tenants = tenants
        self._runs = runs
        self._places = places
        self._accounts = accounts
        self._clock = clock
        self._logs_due_s: dict[str, float] = {}

    def reconfigure(self, settings: JobControllerSettings) -> None:
        """Uses changed settings for the runs that are started from now on."""
        self._places = Places.from_settings(settings)

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
            elif job.cancel_requested:
                self._attempt(self._end, job, End(JobState.CANCELLED, "cancelled"))
        ready = [job for job in jobs if job.state is JobState.RUNNING or self._attempt(self._may_start, job)]
        for job in to_start(ready, self._places.max_running_jobs):
            self._attempt(self._start, job, Start())

    def _may_start(self, job: Job) -> bool:
        """What a run without calls uses is known at its end alone, so it waits where its tenant's quotas are used up already."""
        if makes_calls(job.work) or job.tenant == ANONYMOUS:
            return True
        names = self._accounts.used_up(self._tenants.tenant(job.tenant))
        why = f"{', '.join(names)} is used up; it starts when there is some again" if names else ""
        if why != job.message:
            self._store.keep_why_queued(job, why)
        return not names

    def _attempt(self, what: Callable[..., T], job: Job, *arguments: Any) -> T | None:
        """What comes of it; None where it cannot be done now."""
        try:
            return what(job, *arguments)
        except (RuntimeError, OSError, ValueError, ServeError) as error:
            _log.warning("job_not_looked_after", job=job.job_id, failure=str(error))
            return None

    def _follow(self, job: Job) -> None:
        run, why = self._runs.status(job.run_id)
        report = read_report(self._places.report(job))
        job = self._note_progress(job, report)
        step = next_step(job, run, report, why)
        self._note_log(job, at_once=not isinstance(step, Wait))
        if isinstance(step, Start | End):
            self._accounts.settle(job, "OK" if isinstance(step, End) and step.state is JobState.SUCCEEDED else run.value, self._clock())
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

    def _note_log(self, job: Job, *, at_once: bool) -> None:
        """Keeps what the run has written, for its tenant; of one that goes on every few seconds."""
        if at_once or self._clock() >= self._logs_due_s.get(job.job_id, 0.0):
            self._logs_due_s[job.job_id] = self._clock() + _LOG_EVERY_S
            with contextlib.suppress(RuntimeError, OSError):  # a run that Ray does not know has none; the next look finds it
                self._store.keep_log(job, JobLog.of(job.run_id, self._runs.log(job.run_id)))

    def _start(self, job: Job, step: Start) -> None:
        runs = job.runs + 1
        job = replace(
            job,
            state=JobState.RUNNING,
            run_id=f"{job.job_id}-{runs}",
            runs=runs,
            runs_without_progress=step.fruitless,
            rows_before_run=job.progress.done,
            started_s=job.started_s or self._clock(),
        )
        if self._store.claim_run(job):
            self._places.report(job).unlink(missing_ok=True)
            self._submit(job)

    def _submit(self, job: Job) -> None:
        self._places.notes_of(job).mkdir(mode=0o700, parents=True, exist_ok=True)
        job = self._with_key(job)
        try:
            command = command_of(job, self._places)
        except ValueError as error:
            return self._end(job, End(JobState.FAILED, f"it cannot be done any more: {error}"))
        gpus = 0.0
        if command.engine is not None:
            gpus = self._places.engine_gpus.get(command.engine, 0.0)
            self._places.config(job).write_text(json.dumps(self._places.engines), encoding="utf-8")
        try:
            self._runs.start(job.run_id, command.line, {JOB_KEY: job.job_id, "tenant": job.tenant}, gpus)
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
        file = self._places.key(job)
        if job.tenant == ANONYMOUS or not makes_calls(job.work) or (job.key_id and file.exists()):
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
            with contextlib.suppress(ValueError):  # nobody knows any more where they would be
                remove(command_of(job, self._places).leftovers)
        self._store.keep(replace(job, state=end.state, message=end.message, ended_s=self._clock()))
        shutil.rmtree(self._places.notes_of(job), ignore_errors=True)
        self._logs_due_s.pop(job.job_id, None)
        _log.info("job_ended", job=job.job_id, tenant=job.tenant, state=end.state.value, message=end.message)


@asynccontextmanager
async def open_controller(
    settings: RouterProcessSettings, jobs: JobControllerSettings, runs: Runs, quotas: TokenQuotas
) -> AsyncIterator[JobController]:

    secret = await asyncio.to_thread(read_secret, secret_file(settings), make=settings.access.secret_file is None)
    engine = await asyncio.to_thread(open_database, database_url(settings))
    try:
        accounts = Accounts(UsageStore(engine), secret, settings.model_name, quotas)
        yield JobController(JobStore(engine), TenantStore(engine), runs, Places.from_settings(jobs), accounts)
    finally:
        await asyncio.to_thread(engine.dispose)
