"""How many admissions a router decides, and how soon, in clusters of 10 to 1,000 replicas: its core alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench import router_decisions
from tests.bench.machine import BUSY_FRACTION, busy_fraction, machine_facts
from tests.bench.router_decisions import Decisions
from tests.bench.view import View

SIZES = (10, 100, 1000)
_DECISIONS = 20_000


@dataclass(frozen=True, slots=True)
class RouterScale:
    """The core's figures by number of replicas."""

    core: Mapping[int, Decisions]

    @property
    def decisions_per_s(self) -> dict[int, float]:
        """Admissions that one core decides in a second, with all that goes on beside them."""
        return {size: found.decisions_per_s for size, found in self.core.items()}

    @property
    def p99_s(self) -> dict[int, float]:
        """Of one decision."""
        return {size: found.p99_s for size, found in self.core.items()}


def run(folder: Path, view: View, sizes: Sequence[int] = SIZES, decisions: int = _DECISIONS) -> RouterScale:
    """Measures each size, writes result.json and shows tables."""
    busy = busy_fraction()
    core: dict[int, Decisions] = {}
    for size in sizes:
        with view.step(f"router: {size} replicas, its core"):
            core[size] = router_decisions.measure(size, decisions)
    scale = RouterScale(core)
    path = _write(folder, scale, busy)
    _show(view, scale)
    if busy > BUSY_FRACTION:
        view.say(f"[bold red]{busy:.0%} of this machine was in use before the start: these figures are of little worth.[/]")
    view.say(f"All figures: {path}")
    return scale


def _write(folder: Path, scale: RouterScale, busy_before: float) -> Path:
    content = {
        "machine": machine_facts(),
        "busy_fraction_before": busy_before,
        "core": [asdict(found) for found in scale.core.values()],
    }
    path = folder / "result.json"
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


def _show(view: View, scale: RouterScale) -> None:
    rows = [
        [
            f"{size:,} replicas",
            f"{found.leases:,}",
            f"{found.decisions_per_s:,.0f}",
            f"{found.admit_fraction:.0%}",
            *(f"{1e6 * value_s:,.0f}" for value_s in (found.p50_s, found.p99_s, found.highest_s)),
        ]
        for size, found in scale.core.items()
    ]
    view.table("The router's core, one thread", ["", "leases", "admissions/s", "in decisions", "p50 us", "p99 us", "highest us"], rows)
