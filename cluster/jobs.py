"""Jobs on the running cluster through Ray's Job API: submitted, watched and stopped.

A job's name is made of what it does. So submitting the same again finds the run under way instead of starting a second one, and a job whose
run has ended gets another run, which resumes. Jobs run with this interpreter and this machine's files: nothing is uploaded.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

from deployments.jobs.bulk import BulkJob, entrypoint_of

_POLL_S = 0.3
_KIND_KEY, _NAME_KEY = "neox_serve_job", "name"
_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class JobsError(RuntimeError):
    """Ray's Job API refused or could not be reached. The message is for people."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """One run of a job. name: the job's. status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. message: Ray's.

    Times in seconds since the epoch, None: not yet.
    """

    id: str
    name: str
    kind: str
    status: str
    message: str
    started_s: float | None
    ended_s: float | None

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, good or bad."""
        return self.status in _ENDED


class JobClient(Protocol):
    """What is used of `ray.job_submission.JobSubmissionClient`."""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> str:
        """Starts a job."""

    def list_jobs(self) -> list[Any]:
        """All jobs, as JobDetails."""

    def stop_job(self, job_id: str) -> bool:
        """Asks a job to end."""

    def get_job_logs(self, job_id: str) -> str:
        """What a job has written so far."""

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """What a job writes, until it ends."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run on its way. already_running: it was there before."""

    id: str
    already_running: bool


class Jobs:
    """The jobs of one cluster. Every method raises JobsError; those that take a run's id, also where there is no such run."""

    def __init__(self, client: JobClient) -> None:
        self._client = client

    @classmethod
    def connect(cls, dashboard_url: str) -> Self:
        """The jobs of the cluster whose Ray dashboard is there."""
        from ray.job_submission import JobSubmissionClient

        from cluster.ray_access import present_token

        present_token()
        with _translated():
            return cls(JobSubmissionClient(dashboard_url))

    def submit(self, job: BulkJob) -> Submitted:
        """Starts a run of the job named `job.job_id`, unless one is under way.

        Each run has an id of its own: Ray's watch over a run that has just ended would take another one of that id for dead.
        """
        runs = [info for info in self.list() if info.name == job.job_id]
        for run in runs:
            if not run.ended:
                return Submitted(run.id, already_running=True)
        run_id = f"{job.job_id}-{len(runs) + 1}"
        metadata = {_KIND_KEY: job.kind, _NAME_KEY: job.job_id}
        with _translated():
            self._client.submit_job(entrypoint=entrypoint_of(job), submission_id=run_id, runtime_env={}, metadata=metadata)
        return Submitted(run_id, already_running=False)

    def list(self) -> "list[JobInfo]":
        """All runs of jobs submitted through here, oldest first."""
        with _translated():
            details = self._client.list_jobs()
        infos = [_info(it) for it in details if it.submission_id and _KIND_KEY in (it.metadata or {})]
        return sorted(infos, key=lambda info: info.started_s or float("inf"))

    def info(self, job_id: str) -> JobInfo:
        """One job."""
        for info in self.list():
            if info.id == job_id:
                return info
        raise JobsError(f"no job {job_id}; `neox-serve job list` shows those there are")

    def logs(self, job_id: str) -> str:
        """What a job has written so far."""
        self.info(job_id)
        with _translated():
            return self._client.get_job_logs(job_id)

    def follow(self, job_id: str, write: Callable[[str], None]) -> JobInfo:
        """Writes a job's log as it grows; returns once the job has ended."""
        self.info(job_id)
        with _translated():
            asyncio.run(self._tail(job_id, write))
        return self.wait(job_id)

    def stop(self, job_id: str, timeout_s: float) -> JobInfo:
        """Asks a job to stop and waits. What it has settled stays; submitted again, it goes on. Raises TimeoutError."""
        if not self.info(job_id).ended:
            with _translated():
                self._client.stop_job(job_id)
        return self.wait(job_id, timeout_s)

    def wait(self, job_id: str, timeout_s: float = float("inf")) -> JobInfo:
        """Returns once a job has ended. Raises TimeoutError."""
        deadline_s = time.monotonic() + timeout_s
        while not (info := self.info(job_id)).ended:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"job {job_id} is still {info.status.lower()} after {timeout_s:g} s")
            time.sleep(_POLL_S)
        return info

    async def _tail(self, job_id: str, write: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(job_id):
            write(text)


def name_of(kind: str, *parts: str) -> str:
    """A job's name, made of what it does: the same parts, the same name."""
    return f"{kind}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turns what Ray's client raises into JobsError."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        raise JobsError(f"the cluster's job service: {error}{_hint(str(error))}") from error


def _hint(message: str) -> str:
    """The node's agent, which starts jobs, has a fixed port: of two Ray clusters on a machine, the later one cannot run jobs."""
    if "No available agent" not in message:
        return ""
    return "\n  Either the cluster has only just started, or another Ray cluster on this machine holds the agent's port (52365)."


def _info(details: Any) -> JobInfo:
    return JobInfo(
        id=details.submission_id,
        name=details.metadata[_NAME_KEY],
        kind=details.metadata[_KIND_KEY],
        status=getattr(details.status, "value", str(details.status)),
        message=details.message or "",
        started_s=details.start_time / 1000 if details.start_time else None,
        ended_s=details.end_time / 1000 if details.end_time else None,
    )
