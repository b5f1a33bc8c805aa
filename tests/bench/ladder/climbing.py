"""Measurement of the rungs. One rung runs at a time, in alternating order, and all get the same loads."""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from neox_serve.loadgen.summaries import summarize
from neox_serve.model.model_files import locate_tokenizer, read_facts
from tests.bench.engines.systems import System
from tests.bench.ladder.client import Client, LoadOrder, Sample
from tests.bench.ladder.figures import Climb, FanIn, Ladder, Measured, Stall, require_complete
from tests.bench.ladder.rungs import BARE, CLIENT, EVERYTHING, GATEWAY, ITL_S, LINK, ROUTER, all_rungs, values
from tests.bench.ladder.search import highest_carried
from tests.bench.ladder.stamps import lag
from tests.bench.order import Visit, alternating
from tests.bench.view import View
from tests.bench.workloads import Workload

TOPS = (ROUTER, EVERYTHING)
"""The complete rungs, on which a stalled client and the fan-in are measured."""
STEADY_STREAMS = 64
"""Number of streams for the token lag."""
_CALLERS = 64
_WARM_UP_TOKENS = 16
_FAN_IN_ITL_S = 0.5
_FAN_IN_TOKENS = 4
_FAN_IN_CHANNELS = 8


@dataclass(frozen=True, slots=True)
class Size:
    """The extent of the benchmark."""

    rounds: int
    """Number of rounds."""
    rungs: tuple[str, ...]
    """Names of the measured rungs."""
    lone_requests: int
    """Number of requests of the load with a single stream."""
    one_token_requests: int
    """Number of requests with one output token."""
    many_requests_per_stream: int
    """Number of requests per stream of the load with 256 streams."""
    many_tokens: int
    """Output tokens of each request of the load with 256 streams."""
    ramp_s: float
    """Beginning of each steady response whose lag is ignored, in seconds."""
    steady_s: float
    """Duration of each steady response, in seconds."""
    levels: tuple[int, ...]
    """Numbers of streams to try, in ascending order."""
    fan_in_streams: int | None
    """Number of streams of the fan-in; None for no fan-in."""


FULL = Size(
    rounds=5,
    rungs=(BARE, GATEWAY, LINK, ROUTER, EVERYTHING),
    lone_requests=200,
    one_token_requests=10_000,
    many_requests_per_stream=2,
    many_tokens=128,
    ramp_s=1.0,
    steady_s=4.0,
    levels=(16, 32, 64, 96, 128, 192, 256, 384, 512),
    fan_in_streams=2_000,
)
"""All rungs in five rounds, in about half an hour."""
GOALS = Size(
    rounds=3,
    rungs=(BARE, EVERYTHING),
    lone_requests=50,
    one_token_requests=2_000,
    many_requests_per_stream=2,
    many_tokens=128,
    ramp_s=1.0,
    steady_s=4.0,
    levels=(64,),
    fan_in_streams=None,
)
"""The part that the goals need."""
SMOKE = Size(
    rounds=1,
    rungs=(BARE, GATEWAY, LINK, ROUTER),
    lone_requests=25,
    one_token_requests=500,
    many_requests_per_stream=1,
    many_tokens=64,
    ramp_s=0.4,
    steady_s=1.2,
    levels=(32, 96),
    fan_in_streams=500,
)
"""The rungs without Ray in one round."""


class Loads:
    """The loads of every rung."""

    def __init__(self, size: Size) -> None:
        self._size = size
        self._vocabulary_size = read_facts(locate_tokenizer("builtin", None)).vocabulary_size

    def lone(self) -> Workload:
        """Returns one request at a time, for the TTFT."""
        return self._load("1 stream", 1, self._size.lone_requests, 1)

    def steady(self, streams: int = STEADY_STREAMS) -> Workload:
        """Returns one long response per stream, all at the pace of the engine."""
        return self._load(f"{streams} steady streams", streams, streams, round(self._size.steady_s / ITL_S))

    @property
    def ramp_tokens(self) -> int:
        """Number of ignored first tokens of each steady response."""
        return round(self._size.ramp_s / ITL_S)

    def one_token(self) -> Workload:
        """Returns requests with one output token, for the cost of a request."""
        return self._load("1-token requests", _CALLERS, self._size.one_token_requests, 1)

    def many(self) -> Workload:
        """Returns more streams than a small machine can serve."""
        return self._load("256 streams", 256, 256 * self._size.many_requests_per_stream, self._size.many_tokens)

    def fan_in(self, streams: int) -> Workload:
        """Returns a very large number of slow streams."""
        return self._load("fan-in", streams, streams, _FAN_IN_TOKENS)

    def warm_up(self) -> Workload:
        """Returns one short response per stream."""
        return self._load("warm-up", 256, 256, _WARM_UP_TOKENS)

    def _load(self, name: str, streams: int, requests: int, output_tokens: int) -> Workload:
        return Workload(name, streams, requests, prompt_tokens=64, output_tokens=output_tokens, vocabulary_size=self._vocabulary_size)


def climb(size: Size, folder: Path, view: View) -> Ladder:
    """Measures every rung in every round, then the fan-in on the complete rungs. Raises StartError if a rung does not start."""
    rungs = {rung.name: rung for rung in all_rungs(values()) if rung.name in size.rungs}
    loads, climbs, stalls = Loads(size), list[Climb](), list[Stall]()
    for number, visit in enumerate(alternating(list(rungs), size.rounds)):
        with _started(rungs[visit.system], folder / f"{number:02d}", view) as client:
            rung = _Rung(visit.system, client, loads, view)
            found = rung.visited(visit, size.levels)
            climbs += found[0]
            stalls += found[1]
    return Ladder(tuple(rungs), tuple(climbs), tuple(stalls), tuple(_fan_ins(size, loads, folder, view)))


@contextmanager
def _started(rung: System, folder: Path, view: View) -> Iterator[Client]:
    folder.mkdir(parents=True)
    with view.step(f"{rung.name}: starting"), rung.running(folder) as running:
        yield Client(running, folder)


def _fan_ins(size: Size, loads: Loads, folder: Path, view: View) -> Iterator[FanIn]:
    if size.fan_in_streams is None:
        return
    workload = loads.fan_in(size.fan_in_streams)
    tops = [rung for rung in all_rungs(values(itl_s=_FAN_IN_ITL_S)) if rung.name in TOPS and rung.name in size.rungs]
    for number, rung in enumerate(tops):
        with _started(rung, folder / f"fan-in-{number}", view) as client:
            yield FanIn(rung.name, _Rung(rung.name, client, loads, view).measure(workload, _FAN_IN_CHANNELS))


class _Rung:
    """A running rung."""

    def __init__(self, name: str, client: Client, loads: Loads, view: View) -> None:
        self._name = name
        self._client = client
        self._loads = loads
        self._view = view

    def visited(self, visit: Visit, levels: Sequence[int]) -> tuple[list[Climb], list[Stall]]:
        """Measures all rounds of a visit after a warm-up."""
        self.measure(self._loads.warm_up())
        climbs, stalls = [], []
        for number in visit.rounds:
            climbs.append(self._climb(number, levels))
            if self._name in TOPS:
                stalls.append(self._stall(number))
        return climbs, stalls

    def measure(self, workload: Workload, channels: int = 1) -> Measured:
        """Measures one load."""
        return _measured(workload, self._run(LoadOrder(workload, channels)))

    def _steady(self, number: int, streams: int = STEADY_STREAMS) -> Measured:
        workload = self._loads.steady(streams).in_round(number)
        return _measured(workload, self._run(LoadOrder(workload, ramp_tokens=self._loads.ramp_tokens)))

    def _climb(self, number: int, levels: Sequence[int]) -> Climb:
        loads = self._loads
        return Climb(
            rung=self._name,
            round=number,
            lone=self.measure(loads.lone().in_round(number)),
            steady=self._steady(number),
            one_token=self.measure(loads.one_token().in_round(number)),
            many=self.measure(loads.many().in_round(number)),
            highest=highest_carried(levels, lambda streams: self._steady(number, streams), lambda measured: measured.carried),
        )

    def _stall(self, number: int) -> Stall:
        """Measures without, with, with and without a stalled client, and the other way round in every second round."""
        lags: dict[bool, array[float]] = {False: array("d"), True: array("d")}
        workload = self._loads.steady().in_round(number)
        for stalled in (False, True, True, False) if number % 2 == 0 else (True, False, False, True):
            sample = self._run(LoadOrder(workload, stalled=stalled, ramp_tokens=self._loads.ramp_tokens))
            require_complete(_measured(workload, sample), self._name)
            lags[stalled].extend(sample.lags_s)
        return Stall(self._name, number, lag(lags[False]), lag(lags[True]))

    def _run(self, order: LoadOrder) -> Sample:
        workload = order.workload
        beside = " with a stalled client" if order.stalled else ""
        what = f"{self._name}: {workload.name}{beside}, round {workload.round + 1}"
        with self._view.progress(what, workload.requests) as on_progress:
            return self._client.run(order, on_progress)


def _measured(workload: Workload, sample: Sample) -> Measured:
    system_cpu_s = sum(used_s for role, used_s in sample.cpu_s.items() if role != CLIENT)
    summary = summarize(sample.records, max_concurrency=workload.streams, system_cpu_s=system_cpu_s, client_cpu_s=sample.cpu_s[CLIENT])
    return Measured(workload, summary, lag(sample.lags_s), sample.cpu_s)
