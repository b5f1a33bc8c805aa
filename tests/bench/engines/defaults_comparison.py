"""Comparison of the systems with the defaults of their documentation, as a user would get them.

All serve the built-in model, and only the size of vLLM's KV cache is configured.
"""

from pathlib import Path

from neox_serve.model.model_files import locate_tokenizer, read_facts
from tests.bench import results
from tests.bench.engines.comparison import Comparison, compare
from tests.bench.engines.engine_comparison import MANY, NEOX, OPENAI, SERVE_LLM
from tests.bench.engines.systems import NeoxServe, OpenAiServer, RayServeLlm, System
from tests.bench.machine import busy_fraction
from tests.bench.spreads import Spread
from tests.bench.view import View
from tests.bench.workloads import Workload

_ROUNDS = 3
_OTHERS = (OPENAI, SERVE_LLM)
_CHANNELS = 8
"""Number of connections, so that each of the default gateways gets some."""


def run(folder: Path, view: View) -> Comparison:
    """Runs the comparison, writes result.json and shows tables."""
    busy = busy_fraction()
    systems: list[System] = [
        NeoxServe({}, NEOX, channels=_CHANNELS, defaults=True),
        OpenAiServer({}, OPENAI, defaults=True),
        RayServeLlm({}, SERVE_LLM, defaults=True),
    ]
    comparison = compare(systems, [workload()], rounds=_ROUNDS, folder=folder, view=view)
    results.report(folder, comparison, {}, busy, ratios, view)
    return comparison


def workload() -> Workload:
    """Returns a workload of 64 streams."""
    vocabulary_size = read_facts(locate_tokenizer("builtin", None)).vocabulary_size
    return Workload(MANY, 64, 128, prompt_tokens=64, output_tokens=128, vocabulary_size=vocabulary_size)


def ratios(comparison: Comparison) -> dict[str, Spread]:
    """Returns the values of neox-serve relative to the other systems."""
    found: dict[str, Spread] = {}
    for other in _OTHERS:
        found[f"tok/s over {other}, {MANY}"] = comparison.ratio(NEOX, other, MANY, "output_throughput")
        found[f"start to first token over {other}"] = comparison.start_ratio(NEOX, other)
    return found
