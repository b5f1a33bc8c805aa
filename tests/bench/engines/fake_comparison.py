"""The cost of a token without a model: the complete neox-serve on Ray compared with a Serve handle, both with the fake engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox_serve.model.model_files import locate_tokenizer, read_facts
from tests.bench import results
from tests.bench.engines.comparison import Comparison, compare
from tests.bench.engines.systems import NeoxServe, ServeHandle, System
from tests.bench.machine import busy_fraction
from tests.bench.spreads import Spread
from tests.bench.view import View
from tests.bench.workloads import Workload

NEOX, HANDLE = "neox-serve", "Ray Serve handle"
MANY = "256 streams"
"""Name of the closed loop."""

VALUES: dict[str, Any] = {
    "generation": {"engine": {"kind": "fake", "max_num_seqs": 4096, "fake": {"ttft_s": 0.02, "itl_s": 0.02, "itl_per_request_s": 0.0}}}
}
"""Settings of the fake engine: 50 tokens per second and stream, which is more than either system can serve on a small machine."""


@dataclass(frozen=True, slots=True)
class Size:
    """The extent of a comparison."""

    rounds: int
    """Number of rounds."""
    requests_per_stream: int
    """Number of requests per stream."""
    output_tokens: int
    """Output tokens of each request."""


FULL = Size(rounds=5, requests_per_stream=2, output_tokens=128)
"""Five rounds."""
GOALS = Size(rounds=3, requests_per_stream=2, output_tokens=128)
"""The rounds that the goals need."""
SMOKE = Size(rounds=1, requests_per_stream=1, output_tokens=128)
"""One short round."""


def run(size: Size, folder: Path, view: View) -> Comparison:
    """Runs the comparison, writes result.json and shows tables."""
    busy = busy_fraction()
    systems: list[System] = [NeoxServe(VALUES, NEOX), ServeHandle(VALUES, HANDLE)]
    comparison = compare(systems, [workload(size)], rounds=size.rounds, folder=folder, view=view)
    results.report(folder, comparison, VALUES, busy, ratios, view)
    return comparison


def workload(size: Size) -> Workload:
    """Returns a workload of 256 streams."""
    vocabulary_size = read_facts(locate_tokenizer("builtin", None)).vocabulary_size
    return Workload(
        MANY,
        256,
        256 * size.requests_per_stream,
        prompt_tokens=64,
        output_tokens=size.output_tokens,
        vocabulary_size=vocabulary_size,
    )


def ratios(comparison: Comparison) -> dict[str, Spread]:
    """Returns the ratios that goals refer to."""
    return {
        f"tok/s over {HANDLE}, {MANY}": comparison.ratio(NEOX, HANDLE, MANY, "output_throughput"),
        f"CPU per token over {HANDLE}, {MANY}": comparison.ratio(NEOX, HANDLE, MANY, "system_cpu_s_per_1k_tokens"),
    }
