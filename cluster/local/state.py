"""The record that `neox-serve up` keeps of its running cluster, so that `down` and `job` find it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_FILE = "cluster.json"


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """A running cluster."""

    pid: int
    """The process that runs the cluster."""
    created_s: float
    """Start time of that process, which distinguishes it from a later process with the same pid."""
    gateway_address: str
    dashboard_url: str
    ray_address: str
    metrics_url: str | None
    log_folder: str

    @property
    def alive(self) -> bool:
        """Whether the process that runs the cluster still exists."""
        try:
            return psutil.Process(self.pid).create_time() == self.created_s
        except psutil.NoSuchProcess:
            return False


def record(folder: Path, cluster: RunningCluster) -> None:
    """Writes the record atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{_FILE}.{cluster.pid}"
    temporary.write_text(json.dumps(asdict(cluster), indent=2), encoding="utf-8")
    temporary.replace(folder / _FILE)


def running(folder: Path) -> RunningCluster | None:
    """Returns the cluster recorded in the folder; None if its process does not run any more."""
    try:
        cluster = RunningCluster(**json.loads((folder / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return cluster if cluster.alive else None


def forget(folder: Path) -> None:
    """Removes the record."""
    (folder / _FILE).unlink(missing_ok=True)
