"""What `neox-serve up` notes about the cluster it runs, so that `down` and `job` find it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_FILE = "cluster.json"


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """A cluster held by the process `pid`. created_s: that process's start, by which a reused pid is told from it."""

    pid: int
    created_s: float
    gateway_address: str
    dashboard_url: str
    ray_address: str
    metrics_url: str | None
    log_folder: str

    @property
    def alive(self) -> bool:
        """Whether the process that holds the cluster still runs."""
        try:
            return psutil.Process(self.pid).create_time() == self.created_s
        except psutil.NoSuchProcess:
            return False


def note(folder: Path, cluster: RunningCluster) -> None:
    """Writes the note; whoever reads sees it whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{_FILE}.{cluster.pid}"
    aside.write_text(json.dumps(asdict(cluster), indent=2), encoding="utf-8")
    aside.replace(folder / _FILE)


def running(folder: Path) -> RunningCluster | None:
    """The cluster noted in the folder, if its process still runs."""
    try:
        cluster = RunningCluster(**json.loads((folder / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return cluster if cluster.alive else None


def forget(folder: Path) -> None:
    """Removes the note."""
    (folder / _FILE).unlink(missing_ok=True)
