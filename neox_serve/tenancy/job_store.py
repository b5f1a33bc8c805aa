"""Batch jobs in the database.

Gateways create jobs and request their cancellation; the one job controller of the cluster writes everything else.
"""

import secrets
import time
from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Engine, RowMapping, Select, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from neox_serve.core.errors import Reason, ServeError, invalid
from neox_serve.core.jobs import document
from neox_serve.core.jobs.document import DocumentError
from neox_serve.core.jobs.job import NO_LOG, Job, JobLog, JobState, Progress, new_job_id
from neox_serve.core.jobs.work import Work
from neox_serve.tenancy.tables import batch_job_logs, batch_jobs

_log = structlog.get_logger(__name__)

_MAX_MESSAGE_CHARACTERS = 4_000
_OPEN = (JobState.QUEUED.value, JobState.RUNNING.value)
_COLUMNS = ("message", "run_id", "runs", "runs_without_progress", "rows_before_run", "key_id", "started_s", "ended_s")
_PROGRESS = tuple(Progress.__slots__)


class JobStore:
    """The jobs in a database. All methods block, so call them off the event loop."""

    def __init__(
        self, database: Engine, *, clock: Callable[[], float] = time.time, random_bits: Callable[[int], int] = secrets.randbits
    ) -> None:
        """`clock` returns seconds since the epoch; `random_bits` returns a number with that many random bits."""
        self._database = database
        self._clock = clock
        self._random_bits = random_bits

    def create(self, tenant: str, kind: str, work: Work, request_id: str = "") -> Job:
        """Creates a job, or returns the tenant's job with that request_id. Raises INVALID_ARGUMENT if that job does other work."""
        job = Job(new_job_id(now_s := self._clock(), self._random_bits(32)), tenant, kind, work, now_s, request_id)
        values: dict[str, Any] = {"job_id": job.job_id, "tenant": tenant, "request_id": request_id or None, "kind": kind}
        values["work"] = document.dump_work(kind, work)
        try:
            with self._database.begin() as connection:
                connection.execute(insert(batch_jobs).values(created_s=now_s, cancel_requested=False, **values, **_row(job)))
        except IntegrityError:
            before = self._with_request_id(tenant, request_id)
            if before is None:
                raise
            if (before.kind, before.work) != (kind, work):
                raise invalid("request_id", f"{request_id!r} belongs to {before.job_id}, which does other work") from None
            return before
        return job

    def has(self, tenant: str, request_id: str) -> bool:
        """Returns whether a tenant has a job with that request_id."""
        return bool(request_id) and self._with_request_id(tenant, request_id) is not None

    def job(self, tenant: str, job_id: str) -> Job:
        """Returns a job of a tenant. Raises UNKNOWN_JOB if the tenant has no such job."""
        job = self._first((batch_jobs.c.tenant == tenant) & (batch_jobs.c.job_id == job_id))
        if job is None:
            raise ServeError(Reason.UNKNOWN_JOB, f"there is no job {job_id!r}", {"job": job_id})
        return job

    def page(self, tenant: str, limit: int, before: str = "") -> list[Job]:
        """Returns at most `limit` jobs of a tenant, newest first; with `before`, those created before the job with that id."""
        columns = batch_jobs.c
        where = [columns.tenant == tenant, *([columns.job_id < before] if before else [])]
        return self._all(select(batch_jobs).where(*where).order_by(columns.job_id.desc()).limit(limit))

    def request_cancel(self, tenant: str, job_id: str) -> Job:
        """Requests the cancellation of a job; does nothing if the job has ended. Raises UNKNOWN_JOB."""
        columns = batch_jobs.c
        where = (columns.tenant == tenant) & (columns.job_id == job_id) & columns.state.in_(_OPEN)
        with self._database.begin() as connection:
            connection.execute(update(batch_jobs).where(where).values(cancel_requested=True))
        return self.job(tenant, job_id)

    def open_jobs(self) -> list[Job]:
        """Returns the jobs of all tenants that have not ended, oldest first.

        Leaves out jobs whose documents this version cannot read, such as those that a newer version created.
        """
        return self._all(select(batch_jobs).where(batch_jobs.c.state.in_(_OPEN)).order_by(batch_jobs.c.job_id))

    def update(self, job: Job) -> None:
        """Writes the state and the progress of a job. A requested cancellation stays requested."""
        with self._database.begin() as connection:
            connection.execute(update(batch_jobs).where(batch_jobs.c.job_id == job.job_id).values(**_row(job)))

    def update_queue_message(self, job: Job, message: str) -> None:
        """Writes why a job waits, unless it has been started or has ended in the meantime."""
        where = (batch_jobs.c.job_id == job.job_id) & (batch_jobs.c.state == JobState.QUEUED.value)
        with self._database.begin() as connection:
            connection.execute(update(batch_jobs).where(where).values(message=message))

    def claim_run(self, job: Job) -> bool:
        """Writes that the next run of a job starts. Returns False if another controller has written it already."""
        where = (batch_jobs.c.job_id == job.job_id) & (batch_jobs.c.runs == job.runs - 1)
        with self._database.begin() as connection:
            return connection.execute(update(batch_jobs).where(where).values(**_row(job))).rowcount == 1

    def update_log(self, job: Job, log: JobLog) -> None:
        """Replaces the log of a job."""
        logs = batch_job_logs
        with self._database.begin() as connection:
            connection.execute(delete(logs).where(logs.c.job_id == job.job_id))
            connection.execute(insert(logs).values(job_id=job.job_id, run_id=log.run_id, start=log.start, text=log.text))

    def log(self, tenant: str, job_id: str) -> JobLog:
        """Returns the log of the last run of a tenant's job. Raises UNKNOWN_JOB."""
        self.job(tenant, job_id)
        with self._database.connect() as connection:
            row = connection.execute(select(batch_job_logs).where(batch_job_logs.c.job_id == job_id)).mappings().first()
        return JobLog(row["run_id"], row["start"], row["text"]) if row else NO_LOG

    def _with_request_id(self, tenant: str, request_id: str) -> Job | None:
        return self._first((batch_jobs.c.tenant == tenant) & (batch_jobs.c.request_id == request_id))

    def _first(self, where: ColumnElement[bool]) -> Job | None:
        return next(iter(self._all(select(batch_jobs).where(where))), None)

    def _all(self, query: Select[Any]) -> list[Job]:
        """Returns the jobs that a query finds, without those whose documents cannot be read."""
        with self._database.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [job for job in map(_readable_job, rows) if job is not None]


def _row(job: Job) -> dict[str, Any]:
    values = {name: getattr(job, name) for name in _COLUMNS} | {name: getattr(job.progress, name) for name in _PROGRESS}
    return {**values, "state": job.state.value, "message": job.message[:_MAX_MESSAGE_CHARACTERS]}


def _readable_job(row: RowMapping) -> Job | None:
    try:
        return _job(row)
    except DocumentError as error:
        _log.warning("job_document_unreadable", job=row["job_id"], tenant=row["tenant"], failure=str(error))
        return None


def _job(row: RowMapping) -> Job:
    kind, work = document.load_work(row["work"])
    return Job(
        job_id=row["job_id"],
        tenant=row["tenant"],
        kind=kind,
        work=work,
        created_s=row["created_s"],
        request_id=row["request_id"] or "",
        state=JobState(row["state"]),
        cancel_requested=row["cancel_requested"],
        progress=Progress(*(row[name] for name in _PROGRESS)),
        **{name: row[name] for name in _COLUMNS},
    )
