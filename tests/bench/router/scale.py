"""Admission rates and latencies of a router with 10 to 1,000 replicas: its core, and its process over its links."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.machine import busy_fraction, machine_facts
from tests.bench.router import decisions as router_decisions
from tests.bench.router import link as router_link
from tests.bench.router.decisions import Decisions
from tests.bench.router.link import LinkAdmissions
from tests.bench.view import View

SIZES = (10, 100, 1000)
"""Numbers of replicas."""
DECISIONS = 20_000
"""Number of decisions of the core for each size."""
_LINK_PHASE_S = 4.0


@dataclass(frozen=True, slots=True)
class RouterScale:
    """Results by number of replicas."""

    core: Mapping[int, Decisions]
    """Results of the core."""
    link: Mapping[int, LinkAdmissions]
    """Results of the process over its links."""

    @property
    def decisions_per_s(self) -> dict[int, float]:
        """Decisions per second on one CPU core, including the processing of all other events."""
        return {size: found.decisions_per_s for size, found in self.core.items()}

    @property
    def p99_s(self) -> dict[int, float]:
        """99th percentile of the duration of a decision, in seconds."""
        return {size: found.p99_s for size, found in self.core.items()}


def run(folder: Path, view: View, sizes: Sequence[int] = SIZES) -> RouterScale:
    """Measures each size, writes result.json and shows tables. Raises StartError or TimeoutError if a process does not start."""
    busy = busy_fraction()
    core: dict[int, Decisions] = {}
    link: dict[int, LinkAdmissions] = {}
    for size in sizes:
        with view.step(f"router: {size} replicas, core"):
            core[size] = router_decisions.measure(size, DECISIONS)
        with view.step(f"router: {size} replicas, process"):
            link[size] = router_link.measure(size, _LINK_PHASE_S, _new_folder(folder, size))
    scale = RouterScale(core, link)
    path = _write(folder, scale, busy)
    _show(view, scale)
    view.warn_if_busy(busy)
    view.say(f"All results: {path}")
    return scale


def _new_folder(folder: Path, size: int) -> Path:
    path = folder / f"{size}-replicas"
    path.mkdir()
    return path


def _write(folder: Path, scale: RouterScale, busy_before: float) -> Path:
    content = {
        "machine": machine_facts(),
        "busy_fraction_before": busy_before,
        "core": [asdict(found) for found in scale.core.values()],
        "link": [asdict(found) for found in scale.link.values()],
    }
    path = folder / "result.json"
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


def _show(view: View, scale: RouterScale) -> None:
    headers = ["", "leases", "blocks", "admissions/s", "in decisions", "p50 us", "p99 us", "highest us"]
    view.table("The router's core, one thread", headers, [_core_row(found) for found in scale.core.values()])
    headers = ["", "leases", "CPU s to connect", "admissions/s", "CPU us/admission", "paced/s", "p50 ms", "p99 ms", "highest ms"]
    view.table("The router's process, over its links", headers, [_link_row(found) for found in scale.link.values()])


def _core_row(found: Decisions) -> list[str]:
    times = (f"{1e6 * value_s:,.0f}" for value_s in (found.p50_s, found.p99_s, found.highest_s))
    counts = (f"{count:,.0f}" for count in (found.leases, found.blocks, found.decisions_per_s))
    return [f"{found.replicas:,} replicas", *counts, f"{found.admit_fraction:.0%}", *times]


def _link_row(found: LinkAdmissions) -> list[str]:
    times = (f"{1e3 * value_s:,.1f}" for value_s in (found.p50_s, found.p99_s, found.highest_s))
    rates = (f"{value:,.0f}" for value in (found.admissions_per_s, found.cpu_us_per_admission, found.paced_per_s))
    return [f"{found.replicas:,} replicas", f"{found.leases:,}", f"{found.connect_cpu_s:.2f}", *rates, *times]
