"""What runs of batch jobs write, from Ray's dashboard: for those who keep the cluster."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol, Self


class JobLogsError(RuntimeError):
    """Ray's Job API refused or could not be reached. The message is for people."""


class JobClient(Protocol):
    """What is used of `ray.job_submission.JobSubmissionClient`."""

    def get_job_logs(self, job_id: str) -> str:
        """What a run has written so far."""

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """What a run writes, until it ends."""


class JobLogs:
    """The logs of one cluster's runs, by their ids. Every method raises JobLogsError."""

    def __init__(self, client: JobClient) -> None:
        self._client = client

    @classmethod
    def connect(cls, dashboard_url: str) -> Self:
        """Those of the cluster whose Ray dashboard is there."""
        from ray.job_submission import JobSubmissionClient

        from cluster.ray_access import present_token

        present_token()
        with _translated():
            return cls(JobSubmissionClient(dashboard_url))

    def read(self, run_id: str) -> str:
        """What a run has written so far."""
        with _translated():
            return self._client.get_job_logs(run_id)

    def follow(self, run_id: str, write: Callable[[str], None]) -> None:
        """Writes a run's log as it grows; returns once the run has ended."""
        with _translated():
            asyncio.run(self._tail(run_id, write))

    async def _tail(self, run_id: str, write: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(run_id):
            write(text)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        raise JobLogsError(f"the cluster's job service: {error}") from error
