"""The measured points. A curve consists of points, and a point is a load on a system."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from neox_serve.loadgen.summaries import Summary
from tests.bench.ladder.rungs import CLIENT
from tests.bench.workloads import Workload

STREAMS, GATEWAYS, REPLICAS, PROMPT = "streams", "gateways", "replicas", "prompt tokens"
"""Variables of the curves."""
FAKE, REAL, ASYNC_LLM = "fake engine", "real engine", "AsyncLLM in process"
"""Names of the systems."""


@dataclass(frozen=True, slots=True)
class Size:
    """The extent of the benchmark."""

    rounds: int
    """Number of rounds."""
    streams: tuple[int, ...]
    """Numbers of concurrent streams."""
    gateways: tuple[int, ...]
    """Numbers of gateways."""
    replicas: tuple[int, ...]
    """Numbers of replicas."""
    prompts: tuple[int, ...]
    """Lengths of prompts, in tokens."""
    seconds: float
    """Duration of each response of the fake engine, at 50 tokens per second."""
    lone_requests: int
    """Number of requests of each point with a single stream."""
    routed_to: tuple[int, ...]
    """Numbers of replicas that the router's core chooses from."""
    real: bool
    """Whether real engines are measured, too."""


FULL = Size(
    rounds=2,
    streams=(1, 4, 16, 64, 128, 256, 512),
    gateways=(1, 2),
    replicas=(1, 2, 3, 4),
    prompts=(16, 64, 256, 512, 1024, 1536),
    seconds=3.0,
    lone_requests=20,
    routed_to=(10, 100, 1000),
    real=True,
)
"""All curves, in about ten minutes."""
SMOKE = Size(
    rounds=1,
    streams=(16, 64),
    gateways=(1,),
    replicas=(1,),
    prompts=(16, 1024),
    seconds=1.0,
    lone_requests=5,
    routed_to=(10, 100),
    real=False,
)
"""A few points, in about a minute."""

WIDE_STREAMS = 256
"""Number of streams in the curves over gateways and replicas, at 50 tokens per second each."""
LONE_OUTPUT_TOKENS = 8
"""Output length of the requests with a single stream."""
TOKENS_PER_S = 50
"""Tokens per second of each stream of the fake engine."""


@dataclass(frozen=True, slots=True)
class Point:
    """One load of a curve."""

    over: str
    """Variable of the curve."""
    at: int
    """Value of the variable."""
    system: str
    """Name of the system."""
    workload: Workload
    """The load."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a point in one round."""

    point: Point
    """The point."""
    summary: Summary
    """Summary of the requests."""
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    """CPU seconds of the processes by role. The load generator has the role `client`."""

    def cpu_us_per_token(self, role: str) -> float:
        """Returns the CPU microseconds per token of a role's processes."""
        return 1e6 * self.cpu_s.get(role, 0.0) / max(1, self.summary.total_output_tokens)

    @property
    def system_cpu_us_per_token(self) -> float:
        """CPU microseconds per token of all processes except the client."""
        return sum(self.cpu_us_per_token(role) for role in self.cpu_s if role != CLIENT)

    @property
    def system_cpu_ms_per_request(self) -> float:
        """CPU milliseconds per request of all processes except the client."""
        return 1e3 * sum(used_s for role, used_s in self.cpu_s.items() if role != CLIENT) / max(1, self.summary.completed)


def by_streams(size: Size, vocabulary_size: int) -> list[Point]:
    """Returns the points over the number of streams, with one gateway and one replica."""
    return [Point(STREAMS, streams, FAKE, _steady(streams, size, vocabulary_size)) for streams in size.streams]


def wide(over: str, at: int, size: Size, vocabulary_size: int) -> Point:
    """Returns a point with several gateways or replicas and many streams."""
    return Point(over, at, FAKE, replace(_steady(WIDE_STREAMS, size, vocabulary_size), name=f"{at} {over}"))


def by_prompt(system: str, size: Size, vocabulary_size: int) -> list[Point]:
    """Returns the points over the prompt length, with one request at a time."""
    return [
        Point(
            PROMPT, tokens, system, Workload(f"{tokens} prompt tokens", 1, size.lone_requests, tokens, LONE_OUTPUT_TOKENS, vocabulary_size)
        )
        for tokens in size.prompts
    ]


def in_rounds(points: Sequence[Point], size: Size) -> list[Point]:
    """Returns each point once per round, with different prompts. Every other round is in reverse order."""
    every: list[Point] = []
    for number in range(size.rounds):
        ordered = points if number % 2 == 0 else reversed(points)
        every += [replace(point, workload=point.workload.in_round(number)) for point in ordered]
    return every


def _steady(streams: int, size: Size, vocabulary_size: int) -> Workload:
    return Workload(f"{streams} streams", streams, streams, 64, round(size.seconds * TOKENS_PER_S), vocabulary_size)
