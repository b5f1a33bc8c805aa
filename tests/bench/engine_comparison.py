"""Real engines side by side: the built-in model behind neox-serve, behind vLLM's OpenAI server, and in AsyncLLM without any server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neox_serve.model_files import locate_tokenizer, read_facts
from tests.bench import results
from tests.bench.comparison import Comparison, compare
from tests.bench.machine import busy_fraction
from tests.bench.spreads import Spread
from tests.bench.systems import AsyncLlm, NeoxServe, OpenAiServer, System
from tests.bench.view import View
from tests.bench.workloads import Workload

NEOX, OPENAI, ASYNC_LLM = "neox-serve", "vLLM OpenAI server", "AsyncLLM in process"
MANY, ONE = "64 streams", "1 stream"

VALUES: dict[str, Any] = {"generation": {"engine": {"dtype": "auto", "max_num_seqs": 128, "kv_cache_gib": 0.5}}}
"""The same engine for all: dtype by hardware, eager, prefix caching on, vLLM's mp executor. Everything else is the default."""


@dataclass(frozen=True, slots=True)
class Size:
    """How long a comparison takes. in_process: whether AsyncLLM without a server is measured too."""

    rounds: int
    requests_per_stream: int
    lone_requests: int
    in_process: bool = True


FULL = Size(rounds=5, requests_per_stream=4, lone_requests=30)
GOALS = Size(rounds=3, requests_per_stream=3, lone_requests=30)
SMOKE = Size(rounds=1, requests_per_stream=2, lone_requests=10, in_process=False)


def systems(size: Size) -> list[System]:
    """What is compared."""
    servers: list[System] = [NeoxServe(VALUES, NEOX), OpenAiServer(VALUES, OPENAI)]
    return [*servers, AsyncLlm(VALUES, ASYNC_LLM)] if size.in_process else servers


def workloads(size: Size) -> list[Workload]:
    """64 streams for throughput, one stream for the time that serving adds to the first token."""
    vocabulary_size = read_facts(locate_tokenizer("builtin", None)).vocabulary_size
    return [
        Workload(MANY, 64, 64 * size.requests_per_stream, prompt_tokens=64, output_tokens=128, vocabulary_size=vocabulary_size),
        Workload(ONE, 1, size.lone_requests, prompt_tokens=64, output_tokens=32, vocabulary_size=vocabulary_size),
    ]


def run(size: Size, folder: Path, view: View) -> Comparison:
    """Runs it, writes it, shows it."""
    busy = busy_fraction()
    comparison = compare(systems(size), workloads(size), rounds=size.rounds, folder=folder, view=view)
    found = ratios(comparison, in_process=size.in_process)
    path = results.write(folder, comparison, VALUES, busy, found)
    for workload in (MANY, ONE):
        results.show(view, comparison, [system.name for system in systems(size)], workload)
    results.show_ratios(view, found, path, busy)
    return comparison


def ratios(comparison: Comparison, *, in_process: bool) -> dict[str, Spread]:
    """What the goals are about."""
    others = (OPENAI, ASYNC_LLM) if in_process else (OPENAI,)
    found = {f"tok/s over {other}, {MANY}": comparison.ratio(NEOX, other, MANY, "output_throughput") for other in others}
    found |= {f"added TTFT p50 over {other}, {ONE}, ms": comparison.difference(NEOX, other, ONE, "median_ttft_ms") for other in others}
    cpu = comparison.ratio(NEOX, OPENAI, MANY, "system_cpu_s_per_1k_tokens")
    return found | {f"CPU per token over {OPENAI}, {MANY}": cpu}
