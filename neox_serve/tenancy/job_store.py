"""Batch jobs in the database. Gateways enter them and ask for their end; what comes of them is written by the one job controller."""

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Engine, RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from neox_serve.core.errors import Reason, ServeError, invalid
from neox_serve.core.jobs.job import NO_LOG, Job, JobLog, JobState, Progress, Work, new_job_id, work_of
from neox_serve.tenancy.tables import batch_job_logs, batch_jobs

_MAX_MESSAGE_CHARACTERS = 4_000
_OPEN = (JobState.QUEUED.value, JobState.RUNNING.value)
_KEPT = ("message", "run_id", "runs", "runs_without_progress", "rows_before_run", "key_id", "started_s", "ended_s")
_PROGRESS = tuple(Progress.__slots__)


class JobStore:
    """The database of jobs. Calls block; use them off the event loop. clock: seconds since the epoch."""

    def __init__(
        self, database: Engine, *, clock: Callable[[], float] = time.time, random_bits: Callable[[int], int] = secrets.randbits
    ) -> None:
        self._database = database
        self._clock = clock
        self._random_bits = random_bits

    def create(self, tenant: str, kind: str, work: Work, request_id: str = "") -> Job:
        """Enters a job, or finds the one that the tenant has of that request_id. Raises INVALID_ARGUMENT where that does other work."""
        job = Job(new_job_id(now_s := self._clock(), self._random_bits(32)), tenant, kind, work, now_s, request_id)
        values = {"job_id": job.job_id, "tenant": tenant, "request_id": request_id or None, "kind": kind, "work": asdict(work)}
        try:
            with self._database.begin() as connection:
                connection.execute(insert(batch_jobs).values(created_s=now_s, cancel_requested=False, **values, **_row(job)))
        except IntegrityError:
            before = self._of_request(tenant, request_id)
            if before is None:
                raise
            if (before.kind, before.work) != (kind, work):
                raise invalid("request_id", f"{request_id!r} is that of {before.job_id}, which does other work") from None
            return before
        return job

    def has(self, tenant: str, request_id: str) -> bool:
        """Whether a tenant has a job of that request_id."""
        return bool(request_id) and self._of_request(tenant, request_id) is not None

    def job(self, tenant: str, job_id: str) -> Job:
        """One job of a tenant. Raises UNKNOWN_JOB where it has none of that id."""
        job = self._first((batch_jobs.c.tenant == tenant) & (batch_jobs.c.job_id == job_id))
        if job is None:
            raise ServeError(Reason.UNKNOWN_JOB, f"there is no job {job_id!r}", {"job": job_id})
        return job

    def page(self, tenant: str, most: int, before: str = "") -> list[Job]:
        """A tenant's jobs, the newest first; those that were created before the job of an id."""
        columns = batch_jobs.c
        where = [columns.tenant == tenant, *([columns.job_id < before] if before else [])]
        return self._all(select(batch_jobs).where(*where).order_by(columns.job_id.desc()).limit(most))

    def ask_cancel(self, tenant: str, job_id: str) -> Job:
        """Has the controller end a job; nothing where it has ended. Raises UNKNOWN_JOB."""
        columns = batch_jobs.c
        where = (columns.tenant == tenant) & (columns.job_id == job_id) & columns.state.in_(_OPEN)
        with self._database.begin() as connection:
            connection.execute(update(batch_jobs).where(where).values(cancel_requested=True))
        return self.job(tenant, job_id)

    def open_jobs(self) -> list[Job]:
        """Those of all tenants that have not ended, oldest first."""
        return self._all(select(batch_jobs).where(batch_jobs.c.state.in_(_OPEN)).order_by(batch_jobs.c.job_id))

    def keep(self, job: Job) -> None:
        """Writes what has come of a job. Whether its end is asked for stays as it is."""
        with self._database.begin() as connection:
            connection.execute(update(batch_jobs).where(batch_jobs.c.job_id == job.job_id).values(**_row(job)))

    def keep_why_queued(self, job: Job, message: str) -> None:
        """Writes why a job waits, unless it has been started or ended meanwhile."""
        where = (batch_jobs.c.job_id == job.job_id) & (batch_jobs.c.state == JobState.QUEUED.value)
        with self._database.begin() as connection:
            connection.execute(update(batch_jobs).where(where).values(message=message))

    def claim_run(self, job: Job) -> bool:
        """Writes that a job's next run is to start; False where that has been written already."""
        where = (batch_jobs.c.job_id == job.job_id) & (batch_jobs.c.runs == job.runs - 1)
        with self._database.begin() as connection:
            return connection.execute(update(batch_jobs).where(where).values(**_row(job))).rowcount == 1

    def keep_log(self, job: Job, log: JobLog) -> None:
        """Writes what a job's run has written so far, in place of what was known of it."""
        logs = batch_job_logs
        with self._database.begin() as connection:
            connection.execute(delete(logs).where(logs.c.job_id == job.job_id))
            connection.execute(insert(logs).values(job_id=job.job_id, run_id=log.run_id, start=log.start, text=log.text))

    def log(self, tenant: str, job_id: str) -> JobLog:
        """What the last run of a tenant's job has written. Raises UNKNOWN_JOB."""
        self.job(tenant, job_id)
        with self._database.connect() as connection:
            row = connection.execute(select(batch_job_logs).where(batch_job_logs.c.job_id == job_id)).mappings().first()
        return JobLog(row["run_id"], row["start"], row["text"]) if row else NO_LOG

    def _of_request(self, tenant: str, request_id: str) -> Job | None:
        return self._first((batch_jobs.c.tenant == tenant) & (batch_jobs.c.request_id == request_id))

    def _first(self, where: ColumnElement[bool]) -> Job | None:
        return next(iter(self._all(select(batch_jobs).where(where))), None)

    def _all(self, asked: Any) -> list[Job]:
        with self._database.connect() as connection:
            return [_job(row) for row in connection.execute(asked).mappings()]


def _row(job: Job) -> dict[str, Any]:
    kept = {name: getattr(job, name) for name in _KEPT} | {name: getattr(job.progress, name) for name in _PROGRESS}
    return {**kept, "state": job.state.value, "message": job.message[:_MAX_MESSAGE_CHARACTERS]}


def _job(row: RowMapping) -> Job:
    return Job(
        job_id=row["job_id"],
        tenant=row["tenant"],
        kind=row["kind"],
        work=work_of(row["kind"], row["work"]),
        created_s=row["created_s"],
        request_id=row["request_id"] or "",
        state=JobState(row["state"]),
        cancel_requested=row["cancel_requested"],
        progress=Progress(*(row[name] for name in _PROGRESS)),
        **{name: row[name] for name in _KEPT},
    )
