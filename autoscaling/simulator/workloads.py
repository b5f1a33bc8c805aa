"""Traffic for simulations: recorded, after recorded tenants, and made up. All of it is deterministic by seed and in the order of time."""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np

from autoscaling.simulator.engine import Request

POSITIONS = 2048
"""GPT-NeoX-20B's context; longer prompts are clipped so that their answers fit too."""
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIMESTAMP_CHARACTERS = len("2023-11-16 18:17:03.979960")


@dataclass(frozen=True, slots=True)
class Workload:
    """Traffic by name. requests: makes it anew for a seed, and can be pickled. step_s: when its rate jumps, to measure recovery from."""

    name: str
    duration_s: float
    requests: Callable[[int], Iterator[Request]] = field(repr=False)
    step_s: float | None = None


def clipped(prompt_tokens: int, output_tokens: int, positions: int = POSITIONS) -> tuple[int, int]:
    """Lengths that fit the model together: the answer keeps its length, up to half of the context; the prompt gets what is left."""
    output = max(1, min(output_tokens, positions // 2))
    return max(1, min(prompt_tokens, positions - output)), output


def azure(path: Path, scale: float = 1.0, jitter_s: float = 2.0) -> Workload:
    """A recording in Azure's format (TIMESTAMP, ContextTokens, GeneratedTokens), with scale times as many requests.

    The copies of a request come within jitter_s of it, which leaves bursts as they are. Raises ValueError naming file, line and column.
    """
    if scale <= 0:
        raise ValueError(f"scale {scale}: must be positive")
    rows = _read_azure(path)
    return Workload(f"azure:{path.stem}", rows[-1][0] + jitter_s, partial(_copied, rows, scale, jitter_s))


def _read_azure(path: Path) -> list[tuple[float, int, int]]:
    rows: list[tuple[float, int, int]] = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _AZURE_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: no column {missing[0]!r}; Azure's format has {', '.join(_AZURE_COLUMNS)}")
        for number, row in enumerate(reader, start=2):
            try:
                moment = datetime.fromisoformat(row["TIMESTAMP"][:_TIMESTAMP_CHARACTERS]).timestamp()
                rows.append((moment, *clipped(int(row["ContextTokens"]), int(row["GeneratedTokens"]))))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    if not rows:
        raise ValueError(f"{path}: has no requests")
    rows.sort()
    return [(moment - rows[0][0], prompt, output) for moment, prompt, output in rows]


def _copied(rows: Sequence[tuple[float, int, int]], scale: float, jitter_s: float, seed: int) -> Iterator[Request]:
    rng = Random(seed)
    requests = []
    for at_s, prompt, output in rows:
        copies = int(scale) + (rng.random() < scale % 1)
        requests += [Request(at_s + jitter_s * rng.random(), prompt, output) for _ in range(copies)]
    return iter(sorted(requests, key=lambda request: request.at_s))


def servegen(folder: Path, begin_s: float, duration_s: float, mean_rate: float) -> Workload:
    """Many tenants after ServeGen's clients: each with its rate, its burstiness (CV of gaps) and its lengths in windows of 600 s.

    begin_s: of the recorded two weeks. mean_rate: requests a second that all rates are scaled to; lengths are clipped to the context.
    Clients without recorded lengths take those of another one, which is drawn. Raises ValueError where the span holds no rates.
    """
    rates = _read_rates(folder / "servegen_m-small_client_rates.csv", begin_s, duration_s)
    if not rates:
        raise ValueError(f"begin_s {begin_s}, duration_s {duration_s}: no recorded rates there")
    lengths = _read_quantiles(folder / "servegen_m-small_token_quantiles.csv")
    recorded = sum(rate for windows in rates.values() for _, rate, _ in windows) * 600 / duration_s
    factor = mean_rate / recorded
    return Workload("servegen", duration_s, partial(_tenants, rates, lengths, factor, duration_s))


_Windows = dict[str, list[tuple[float, float, float]]]
_Lengths = dict[str, dict[str, tuple[float, ...]]]
_QUANTILES = (0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)
_QUANTILE_COLUMNS = ("p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "max")


def _read_rates(path: Path, begin_s: float, duration_s: float) -> _Windows:
    """By client: window's begin from begin_s on, rate, CV of gaps."""
    rates: _Windows = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            at_s = float(row["t_s"]) - begin_s
            if 0 <= at_s < duration_s:
                rates[row["client"]].append((at_s, float(row["rate_rps"]), float(row["iat_cv"])))
    return dict(rates)


def _read_quantiles(path: Path) -> _Lengths:
    """By client and field, the first window's quantiles."""
    found: _Lengths = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["client"], {}).setdefault(row["field"], tuple(float(row[name]) for name in _QUANTILE_COLUMNS))
    return {client: fields for client, fields in found.items() if len(fields) == 2}


def _tenants(rates: _Windows, lengths: _Lengths, factor: float, duration_s: float, seed: int) -> Iterator[Request]:
    requests: list[Request] = []
    known = sorted(lengths)
    for number, (client, windows) in enumerate(sorted(rates.items())):
        rng = np.random.default_rng((seed, number))
        of = lengths.get(client) or lengths[known[int(rng.integers(len(known)))]]
        for at_s, rate, cv in windows:
            moments = _renewals(rng, rate * factor, cv, at_s, min(at_s + 600.0, duration_s))
            prompts, outputs = (
                np.interp(rng.random(len(moments)), (0.0, *_QUANTILES), (of[name][0], *of[name]))
                for name in ("input_tokens", "output_tokens")
            )
            for moment, prompt, output in zip(moments, prompts, outputs, strict=True):
                requests.append(Request(float(moment), *clipped(int(prompt), int(output)), tenant=number))
    return iter(sorted(requests, key=lambda request: request.at_s))


def _renewals(rng: np.random.Generator, rate: float, cv: float, begin_s: float, end_s: float) -> list[float]:
    """Moments with gamma-distributed gaps of a mean of 1/rate and this CV; ServeGen's windows begin anywhere in a gap."""
    if rate <= 0:
        return []
    shape = 1 / min(max(cv, 0.2), 8.0) ** 2
    moments: list[float] = []
    now_s = begin_s + rng.random() * rng.gamma(shape, 1 / (rate * shape))
    while now_s < end_s:
        moments.append(now_s)
        now_s += rng.gamma(shape, 1 / (rate * shape))
    return moments


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal prompt and output lengths, by their medians and the standard deviation of their logarithm."""

    prompt_tokens: float = 600.0
    output_tokens: float = 200.0
    sigma: float = 0.7

    def draw(self, rng: Random) -> tuple[int, int]:
        """Lengths of one request, which fit the model."""
        prompt_tokens = self.prompt_tokens * math.exp(self.sigma * rng.gauss(0, 1))
        return clipped(int(prompt_tokens), int(self.output_tokens * math.exp(self.sigma * rng.gauss(0, 1))))


CHAT = Lengths()


class Rate(Protocol):
    """How many requests a second come at a moment, for a seed."""

    @property
    def highest(self) -> float:
        """That it ever is."""
        ...

    def __call__(self, now_s: float, seed: int) -> float:
        """At most `highest`."""
        ...


def varying(name: str, duration_s: float, rate: Rate, lengths: Lengths = CHAT, tenants: int = 20, step_s: float | None = None) -> Workload:
    """Poisson arrivals whose rate changes with time. Source: thinning, Lewis and Shedler, Naval Research Logistics Quarterly 26, 1979."""
    return Workload(name, duration_s, partial(_thinned, duration_s, rate, lengths, tenants), step_s)


def _thinned(duration_s: float, rate: Rate, lengths: Lengths, tenants: int, seed: int) -> Iterator[Request]:
    rng, highest = Random(seed), rate.highest
    now_s = rng.expovariate(highest)
    while now_s < duration_s:
        if rng.random() * highest < rate(now_s, seed):
            yield Request(now_s, *lengths.draw(rng), tenant=rng.randrange(tenants))
        now_s += rng.expovariate(highest)


@dataclass(frozen=True, slots=True)
class Bursts:
    """On top of a rate: at `a_day` moments of each day, for lasts_s, `factor` times the rate, reached over ramp_s and left so."""

    a_day: float = 12.0
    lasts_s: float = 300.0
    ramp_s: float = 60.0
    factor: float = 1.5

    def at(self, since_s: float) -> float:
        """Times the rate, so long after a burst's beginning."""
        if not 0 <= since_s < self.lasts_s:
            return 1.0
        return 1 + (self.factor - 1) * min(1.0, since_s / self.ramp_s, (self.lasts_s - since_s) / self.ramp_s)


@dataclass(frozen=True, slots=True)
class _Wave:
    mean_rate: float
    day_s: float
    depth: float
    bursts: Bursts

    @property
    def highest(self) -> float:
        return self.mean_rate * (1 + self.depth) * max(1.0, self.bursts.factor)

    def __call__(self, now_s: float, seed: int) -> float:
        highest = 1.0
        for begin_s in self._begins_s(seed, int(now_s / self.day_s)):
            highest = max(highest, self.bursts.at(now_s - begin_s))
        return highest * self.mean_rate * (1 - self.depth * math.cos(2 * math.pi * now_s / self.day_s))

    @lru_cache(maxsize=16)  # noqa: B019 - it is frozen and small
    def _begins_s(self, seed: int, day: int) -> tuple[float, ...]:
        rng = Random(f"bursts {seed} {day}")
        return tuple(self.day_s * (day + rng.random()) for _ in range(round(self.bursts.a_day)))


def diurnal(mean_rate: float, day_s: float = 86_400.0, days: float = 1.0, depth: float = 0.7, bursts: Bursts = Bursts()) -> Workload:
    """A day's wave, deepest at its beginning, with bursts at moments that the seed draws."""
    return varying("diurnal", day_s * days, _Wave(mean_rate, day_s, depth, bursts))


@dataclass(frozen=True, slots=True)
class _Jump:
    before_rate: float
    factor: float
    step_s: float

    @property
    def highest(self) -> float:
        return self.before_rate * max(1.0, self.factor)

    def __call__(self, now_s: float, seed: int) -> float:
        return self.before_rate * (self.factor if now_s >= self.step_s else 1.0)


def step(before_rate: float, factor: float, step_s: float, duration_s: float) -> Workload:
    """A steady rate that jumps once."""
    return varying("step", duration_s, _Jump(before_rate, factor, step_s), step_s=step_s)
