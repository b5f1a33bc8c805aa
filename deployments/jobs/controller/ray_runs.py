"""Runs of batch jobs in the Ray cluster of this process, through Ray's Job Submission API."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import ray

from neox_serve.core.jobs.job import RunStatus

_NOT_FOUND = "404"
_NO_AGENT = "No available agent"
_NO_AGENT_HERE = (
    "Ray's agent, which starts runs, is not available: either the cluster has only just started, or another Ray cluster on this machine "
    "uses the agent's port (52365)"
)


class RayRuns:
    """Implements the controller's Runs. It connects to Ray with the first call."""

    def start(self, run_id: str, entrypoint: str, metadata: Mapping[str, str], gpus: float) -> None:
        """Starts a run as soon as `gpus` GPUs are free. Raises RuntimeError."""
        try:
            self._client.submit_job(entrypoint=entrypoint, submission_id=run_id, metadata=dict(metadata), entrypoint_num_gpus=gpus or None)
        except RuntimeError as error:
            if _NO_AGENT not in str(error):
                raise
            raise RuntimeError(_NO_AGENT_HERE) from error

    def status(self, run_id: str) -> tuple[RunStatus, str]:
        """Returns the status of a run and Ray's message about it. Raises RuntimeError."""
        try:
            found = self._client.get_job_info(run_id)
        except RuntimeError as error:
            if _NOT_FOUND not in str(error):
                raise
            return RunStatus.UNKNOWN, "Ray does not know this run"
        return RunStatus(found.status.value), found.message or ""

    def stop(self, run_id: str) -> None:
        """Asks a run to stop. Raises RuntimeError."""
        self._client.stop_job(run_id)

    def log(self, run_id: str) -> str:
        """Returns what a run has written so far. Raises RuntimeError."""
        return str(self._client.get_job_logs(run_id))

    @cached_property
    def _client(self) -> Any:
        from ray.dashboard.utils import ray_address_to_api_server_url
        from ray.job_submission import JobSubmissionClient

        # Uses the address of this cluster, since the automatic search could find another cluster on this machine.
        return JobSubmissionClient(ray_address_to_api_server_url(ray.get_runtime_context().gcs_address))
