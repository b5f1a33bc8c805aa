"""Real engines side by side: the built-in model behind neox-serve, behind what users would pick instead, and in AsyncLLM alone."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neox_serve.model.model_files import locate_tokenizer, read_facts
from tests.bench import results
from tests.bench.engines import engine_plot
from tests.bench.engines.comparison import Comparison, Later, compare
from tests.bench.engines.systems import AsyncLlm, NeoxServe, OpenAiServer, RayServeLlm, System, VllmGrpcServer
from tests.bench.machine import busy_fraction
from tests.bench.spreads import Spread
from tests.bench.view import View
from tests.bench.workloads import Workload

NEOX, OPENAI, ASYNC_LLM = "neox-serve", "vLLM OpenAI server", "AsyncLLM in process"
TWO_GATEWAYS, VLLM_GRPC = "neox-serve, two gateways", "vLLM gRPC server"
SERVE_LLM, SERVE_LLM_UNBATCHED = "ray.serve.llm", "ray.serve.llm, 0 ms"
MANY, MOST, ONE = "64 streams", "128 streams", "1 stream"
OPEN_SHARES = (0.3, 0.6, 0.8)
_MIN_REQUESTS = 64
"""Of a closed loop: with two requests a stream, eight streams would be done in two seconds."""

VALUES: dict[str, Any] = {"generation": {"engine": {"dtype": "auto", "max_num_seqs": 128, "kv_cache_gib": 0.5, "executor_backend": "uni"}}}
"""The same engine for all: dtype by hardware, eager, prefix caching on, the worker in the engine core's process (but for ray.serve.llm,
which takes vLLM's mp executor on CPUs whatever it is told). Everything else is the default."""


@dataclass(frozen=True, slots=True)
class Size:
    """How long a comparison takes. others: what neox-serve is measured against. streams: of the closed loops besides the lone stream.

    open_rounds: the rounds, not the first two, that have open loops too, of open_s seconds each.
    """

    rounds: int
    requests_per_stream: int
    lone_requests: int
    others: tuple[str, ...]
    streams: tuple[int, ...] = (64,)
    open_rounds: frozenset[int] = frozenset()
    open_s: float = 8.0


EVERY_OTHER = (TWO_GATEWAYS, OPENAI, ASYNC_LLM, VLLM_GRPC, SERVE_LLM, SERVE_LLM_UNBATCHED)
FULL = Size(5, 2, 12, EVERY_OTHER, (8, 32, 64, 128), open_rounds=frozenset({2}))
GOALS = Size(3, 3, 30, (OPENAI, ASYNC_LLM, SERVE_LLM, SERVE_LLM_UNBATCHED), (64, 128))
SMOKE = Size(1, 2, 10, (OPENAI,))


def systems(size: Size) -> list[System]:
    """What is compared, neox-serve first."""
    two: dict[str, Any] = {**VALUES, "gateway": {"processes": 2}}
    every: list[System] = [
        NeoxServe(VALUES, NEOX),
        NeoxServe(two, TWO_GATEWAYS, channels=8),
        OpenAiServer(VALUES, OPENAI),
        AsyncLlm(VALUES, ASYNC_LLM),
        VllmGrpcServer(VALUES, VLLM_GRPC),
        RayServeLlm(VALUES, SERVE_LLM),
        RayServeLlm(VALUES, SERVE_LLM_UNBATCHED, batching_ms=0),
    ]
    return [system for system in every if system.name in {NEOX, *size.others}]


def workloads(size: Size) -> list[Workload]:
    """Many streams for throughput, one stream for the time that serving adds to the first token."""
    vocabulary_size = read_facts(locate_tokenizer("builtin", None)).vocabulary_size
    many = [
        Workload(f"{streams} streams", streams, max(_MIN_REQUESTS, streams * size.requests_per_stream), 64, 128, vocabulary_size)
        for streams in size.streams
    ]
    return [*many, Workload(ONE, 1, size.lone_requests, prompt_tokens=64, output_tokens=32, vocabulary_size=vocabulary_size)]


def run(size: Size, folder: Path, view: View) -> Comparison:
    """Runs it, writes it, shows it."""
    busy = busy_fraction()
    later = Later(lambda first_round: open_loops(first_round, size), size.open_rounds)
    comparison = compare(systems(size), workloads(size), rounds=size.rounds, folder=folder, view=view, later=later)
    path = results.report(folder, comparison, VALUES, busy, lambda found: ratios(found, size), view)
    view.say(f"Plot: {engine_plot.write(path)}")
    return comparison


def open_loops(closed: Comparison, size: Size) -> list[Workload]:
    """Poisson arrivals at shares of what the slowest system carries of 64 streams, the same for all systems."""
    slowest_tok_s = min(closed.median(system.name, MANY, "output_throughput") for system in systems(size))
    alike = closed.of(NEOX, MANY)[0].workload
    found = []
    for share in OPEN_SHARES:
        rate_rps = share * slowest_tok_s / alike.output_tokens
        requests = max(1, round(rate_rps * size.open_s))
        streams = min(alike.streams, requests)
        found.append(replace(alike, name=f"open loop, {share:.0%}", streams=streams, requests=requests, rate_rps=rate_rps))
    return found


def ratios(comparison: Comparison, size: Size) -> dict[str, Spread]:
    """What the goals are about."""
    found: dict[str, Spread] = {}
    for other in size.others:
        for streams in size.streams:
            name = f"{streams} streams"
            found[f"tok/s over {other}, {name}"] = comparison.ratio(NEOX, other, name, "output_throughput")
        found[f"added TTFT p50 over {other}, {ONE}, ms"] = comparison.difference(NEOX, other, ONE, "median_ttft_ms")
    return found | {
        f"CPU per token over {OPENAI}, {MANY}": comparison.ratio(NEOX, OPENAI, MANY, "system_cpu_s_per_1k_tokens"),
        f"memory over {OPENAI}, {MANY}": comparison.ratio(NEOX, OPENAI, MANY, "resident_mib"),
        f"start to first token over {OPENAI}": comparison.start_ratio(NEOX, OPENAI),
    }
