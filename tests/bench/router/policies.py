"""What each policy of routing makes of Mooncake's recording on simulated replicas: by load, and where the caches are too small."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.view import View
from tests.simulation import mooncake
from tests.simulation.routing import ROUND_ROBIN, Outcome, run

POLICIES = ("kv-aware", "prefix-affinity", "least-tokens", "power-of-two", ROUND_ROBIN)
_HEADERS = ("", "hits over ideal", "TTFT p50 s", "TTFT p90 s", "highest load")
A100_COPIES = 0.14
"""29,000 tokens on each replica: GPT-NeoX-20B's keys and values take 1.08 MB a token, its weights 41 of the 72 GB that vLLM takes of 80."""


@dataclass(frozen=True, slots=True)
class Case:
    """load: 1 where the prompts would fill the replicas' time without any cache. copies: of all distinct blocks, that the caches hold."""

    name: str
    load: float
    copies: float


CASES = (
    Case("half the load", 0.5, 2.0),
    Case("nearly full", 0.9, 2.0),
    Case("full without caches", 1.0, 2.0),
    Case("more than full without caches", 1.2, 2.0),
    Case("full, and the caches of A100s with 80 GB", 1.0, A100_COPIES),
)


def measure(folder: Path, view: View) -> None:
    """Writes result.json and shows a table for each case. Raises TraceError where the recording is not there."""
    content: dict[str, object] = {}
    for case in CASES:
        with view.step(f"routing: {case.name}"):
            found = {policy: run(mooncake.traffic(), mooncake.cluster(case.load, case.copies), policy) for policy in POLICIES}
        view.table(f"{case.name} (load {case.load:g})", _HEADERS, [_row(policy, outcome) for policy, outcome in found.items()])
        content[case.name] = {policy: asdict(outcome) for policy, outcome in found.items()}
    path = folder / "result.json"
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    view.say(f"All figures: {path}")


def _row(policy: str, outcome: Outcome) -> list[str]:
    hits = outcome.hit_fraction / mooncake.traffic().ideal_hit_fraction
    return [policy, *(f"{value:.2f}" for value in (hits, outcome.ttft_p50_s, outcome.ttft_p90_s, outcome.highest_load))]
