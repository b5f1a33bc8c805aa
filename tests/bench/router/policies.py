"""Routing policies on Mooncake's trace with simulated replicas, at several loads and with caches that are too small."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.view import View
from tests.simulation import mooncake
from tests.simulation.routing import ROUND_ROBIN, Outcome, run

POLICIES = ("kv-aware", "prefix-affinity", "least-tokens", "power-of-two", ROUND_ROBIN)
"""The compared policies."""
_HEADERS = ("", "hits over ideal", "TTFT p50 s", "TTFT p90 s", "highest load")
A100_COPIES = 0.14
"""Relative cache size of A100s: 29,000 tokens per replica. GPT-NeoX-20B's KV cache takes 1.08 MB per token, and its weights take 41 GB of
the 72 GB that vLLM uses of 80 GB."""


@dataclass(frozen=True, slots=True)
class Case:
    """A load and a cache size."""

    name: str
    """Name in the tables."""
    load: float
    """Load relative to the prompts that the replicas can compute without caches."""
    copies: float
    """Size of all caches relative to the distinct blocks of the trace."""


CASES = (
    Case("half of the uncached capacity", 0.5, 2.0),
    Case("nearly the uncached capacity", 0.9, 2.0),
    Case("the uncached capacity", 1.0, 2.0),
    Case("more than the uncached capacity", 1.2, 2.0),
    Case("the uncached capacity, caches of A100s with 80 GB", 1.0, A100_COPIES),
)
"""The measured cases."""


def measure(folder: Path, view: View) -> None:
    """Writes result.json and shows a table for each case. Raises TraceError if the trace is missing."""
    content: dict[str, object] = {}
    for case in CASES:
        with view.step(f"routing: {case.name}"):
            found = {policy: run(mooncake.traffic(), mooncake.cluster(case.load, case.copies), policy) for policy in POLICIES}
        view.table(f"{case.name} (load {case.load:g})", _HEADERS, [_row(policy, outcome) for policy, outcome in found.items()])
        content[case.name] = {policy: asdict(outcome) for policy, outcome in found.items()}
    path = folder / "result.json"
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    view.say(f"All results: {path}")


def _row(policy: str, outcome: Outcome) -> list[str]:
    hits = outcome.hit_fraction / mooncake.traffic().ideal_hit_fraction
    return [policy, *(f"{value:.2f}" for value in (hits, outcome.ttft_p50_s, outcome.ttft_p90_s, outcome.highest_load))]
