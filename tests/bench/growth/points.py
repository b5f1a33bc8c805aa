"""What is measured: a curve is points, and a point is a load on a system."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from neox_serve.loadgen.summaries import Summary
from tests.bench.ladder.rungs import CLIENT
from tests.bench.workloads import Workload

STREAMS, GATEWAYS, REPLICAS, PROMPT = "streams", "gateways", "replicas", "prompt tokens"
FAKE, REAL, ALONE = "fake engine", "real engine", "AsyncLLM in process"


@dataclass(frozen=True, slots=True)
class Size:
    """How long it takes. seconds: of a response of the fake engine, 50 tokens each. real: whether real engines are started too."""

    rounds: int
    streams: tuple[int, ...]
    gateways: tuple[int, ...]
    replicas: tuple[int, ...]
    prompts: tuple[int, ...]
    seconds: float
    lone_requests: int
    routed_to: tuple[int, ...]
    real: bool


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

WIDE_STREAMS = 256
"""Asked of any number of gateways and replicas, 50 tokens a second each."""
LONE_OUTPUT_TOKENS = 8
TOKENS_PER_S = 50


@dataclass(frozen=True, slots=True)
class Point:
    """One load of a curve. over: what the curve runs over; at: where on it; system: whose line it is on."""

    over: str
    at: int
    system: str
    workload: Workload


@dataclass(frozen=True, slots=True)
class Measured:
    """A point in one round. cpu_s: seconds used by each role's processes, the load generator's among them as `client`."""

    point: Point
    summary: Summary
    cpu_s: Mapping[str, float] = field(default_factory=dict)

    def cpu_us_per_token(self, role: str) -> float:
        """CPU microseconds of a role's processes."""
        return 1e6 * self.cpu_s.get(role, 0.0) / max(1, self.summary.total_output_tokens)

    @property
    def system_cpu_us_per_token(self) -> float:
        """Of all processes but the client."""
        return sum(self.cpu_us_per_token(role) for role in self.cpu_s if role != CLIENT)

    @property
    def system_cpu_ms_per_request(self) -> float:
        """As above, in milliseconds."""
        return 1e3 * sum(used_s for role, used_s in self.cpu_s.items() if role != CLIENT) / max(1, self.summary.completed)


def by_streams(size: Size, vocabulary_size: int) -> list[Point]:
    """One gateway, one replica."""
    return [Point(STREAMS, streams, FAKE, _steady(streams, size, vocabulary_size)) for streams in size.streams]


def wide(over: str, at: int, size: Size, vocabulary_size: int) -> Point:
    """A number of gateways or of replicas under many streams."""
    return Point(over, at, FAKE, replace(_steady(WIDE_STREAMS, size, vocabulary_size), name=f"{at} {over}"))


def by_prompt(system: str, size: Size, vocabulary_size: int) -> list[Point]:
    """A request at a time."""
    return [
        Point(PROMPT, tokens, system, Workload(f"{tokens} tokens in", 1, size.lone_requests, tokens, LONE_OUTPUT_TOKENS, vocabulary_size))
        for tokens in size.prompts
    ]


def in_rounds(points: Sequence[Point], size: Size) -> list[Point]:
    """Each point once a round, to and fro, with prompts of its own."""
    every: list[Point] = []
    for number in range(size.rounds):
        ordered = points if number % 2 == 0 else reversed(points)
        every += [replace(point, workload=point.workload.in_round(number)) for point in ordered]
    return every


def _steady(streams: int, size: Size, vocabulary_size: int) -> Workload:
    return Workload(f"{streams} streams", streams, streams, 64, round(size.seconds * TOKENS_PER_S), vocabulary_size)
