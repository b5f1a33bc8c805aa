"""Runs in Ray for the job controller, which tests can make forgotten or unreachable."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from deployments.jobs import run_documents
from neox_serve.core.jobs.job import RunStatus

R = TypeVar("R")


@dataclass
class ForgetfulRay:
    """Implements the controller's Runs."""

    entrypoints: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, RunStatus] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    away: bool = False
    gpus: dict[str, float] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)

    def start(self, run_id: str, entrypoint: str, metadata: Mapping[str, str], gpus: float) -> None:
        self._reach()
        self.gpus[run_id] = gpus
        assert run_id not in self.statuses, "Ray takes an id once"
        self.started.append(run_id)
        assert metadata["neox_serve_batch_job"] == run_id.rpartition("-")[0]
        self.entrypoints[run_id], self.statuses[run_id] = entrypoint, RunStatus.RUNNING

    def status(self, run_id: str) -> tuple[RunStatus, str]:
        self._reach()
        return self.statuses.get(run_id, RunStatus.UNKNOWN), "as Ray says"

    def stop(self, run_id: str) -> None:
        self._reach()
        self.statuses[run_id] = RunStatus.STOPPED

    def log(self, run_id: str) -> str:
        self._reach()
        return self.logs.get(run_id, "")

    def _reach(self) -> None:
        if self.away:
            raise RuntimeError("Ray is away")

    def run(self, run_type: type[R], run_id: str) -> R:
        """Reads what a run was started with."""
        *_, option, file = shlex.split(self.entrypoints[run_id])
        assert option == "--job"
        return run_documents.read(run_type, Path(file))
