"""Comparison on real engines: the built-in model behind neox-serve, behind other serving systems, and in AsyncLLM."""

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
"""Names of closed loops."""
OPEN_SHARES = (0.3, 0.6, 0.8)
"""Loads of the open loops relative to the throughput of the slowest system."""
_MIN_REQUESTS = 64
"""Minimum number of requests of a closed loop. With two requests per stream, eight streams would end after two seconds."""

VALUES: dict[str, Any] = {"generation": {"engine": {"dtype": "auto", "max_num_seqs": 128, "kv_cache_gib": 0.5, "executor_backend": "uni"}}}
"""Engine settings of all systems: dtype by hardware, eager mode, prefix caching, and the worker in the engine core's process (except for
ray.serve.llm, which always uses vLLM's mp executor on CPUs). Everything else is the default."""


@dataclass(frozen=True, slots=True)
class Size:
    """The extent of a comparison."""

    rounds: int
    """Number of rounds."""
    requests_per_stream: int
    """Number of requests per stream of the closed loops."""
    lone_requests: int
    """Number of requests of the closed loop with one stream."""
    others: tuple[str, ...]
    """Names of the systems that neox-serve is compared with."""
    streams: tuple[int, ...] = (64,)
    """Numbers of streams of the closed loops, in addition to one stream."""
    open_rounds: frozenset[int] = frozenset()
    """Rounds that also have open loops; not the first two."""
    open_s: float = 8.0
    """Duration of each open loop, in seconds."""


EVERY_OTHER = (TWO_GATEWAYS, OPENAI, ASYNC_LLM, VLLM_GRPC, SERVE_LLM, SERVE_LLM_UNBATCHED)
"""Names of all systems that neox-serve is compared with."""
FULL = Size(5, 2, 12, EVERY_OTHER, (8, 32, 64, 128), open_rounds=frozenset({2}))
"""Five rounds of everything."""
GOALS = Size(3, 3, 30, (OPENAI, ASYNC_LLM, SERVE_LLM, SERVE_LLM_UNBATCHED), (64, 128))
"""The part that the goals need."""
SMOKE = Size(1, 2, 10, (OPENAI,))
"""One round against vLLM's OpenAI server."""


def systems(size: Size) -> list[System]:
    """Returns the compared systems, neox-serve first."""
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
    """Returns the closed loops: many streams for the throughput, and one stream for the TTFT."""
    vocabulary_size = read_facts(locate_tokenizer("builtin", None)).vocabulary_size
    many = [
        Workload(f"{streams} streams", streams, max(_MIN_REQUESTS, streams * size.requests_per_stream), 64, 128, vocabulary_size)
        for streams in size.streams
    ]
    return [*many, Workload(ONE, 1, size.lone_requests, prompt_tokens=64, output_tokens=32, vocabulary_size=vocabulary_size)]


def run(size: Size, folder: Path, view: View) -> Comparison:
    """Runs the comparison, writes result.json and engines.png, and shows tables."""
    busy = busy_fraction()
    later = Later(lambda first_round: open_loops(first_round, size), size.open_rounds)
    comparison = compare(systems(size), workloads(size), rounds=size.rounds, folder=folder, view=view, later=later)
    path = results.report(folder, comparison, VALUES, busy, lambda found: ratios(found, size), view)
    view.say(f"Plot: {engine_plot.write(path)}")
    return comparison


def open_loops(closed: Comparison, size: Size) -> list[Workload]:
    """Returns open loops with Poisson arrivals, the same for all systems. Their rates are fractions of the slowest system's throughput."""
    slowest_tok_s = min(closed.median(system.name, MANY, "output_throughput") for system in systems(size))
    closed_loop = closed.of(NEOX, MANY)[0].workload
    found = []
    for share in OPEN_SHARES:
        rate_rps = share * slowest_tok_s / closed_loop.output_tokens
        requests = max(1, round(rate_rps * size.open_s))
        streams = min(closed_loop.streams, requests)
        found.append(replace(closed_loop, name=f"open loop, {share:.0%}", streams=streams, requests=requests, rate_rps=rate_rps))
    return found


def ratios(comparison: Comparison, size: Size) -> dict[str, Spread]:
    """Returns the ratios and differences that goals refer to."""
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
