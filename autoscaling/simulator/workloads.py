"""Traffic for simulations: recordings, traffic modelled on recorded tenants, and synthetic traffic.

All requests are deterministic by seed and sorted by arrival.
"""

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
"""Context length of GPT-NeoX-20B in tokens. Longer prompts are clipped so that their answers fit."""
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIMESTAMP_CHARACTERS = len("2023-11-16 18:17:03.979960")


@dataclass(frozen=True, slots=True)
class Workload:
    """A source of traffic."""

    name: str
    """Name in tables and reports."""
    duration_s: float
    """Length of the traffic, in seconds."""
    requests: Callable[[int], Iterator[Request]] = field(repr=False)
    """Generates the requests for a seed. It can be pickled."""
    step_s: float | None = None
    """When the rate jumps, from which the recovery is measured; None if it does not."""


def clipped(prompt_tokens: int, output_tokens: int, positions: int = POSITIONS) -> tuple[int, int]:
    """Returns a prompt and output length that fit the context. The output is limited to half of the context, the prompt to the rest."""
    output = max(1, min(output_tokens, positions // 2))
    return max(1, min(prompt_tokens, positions - output)), output


def azure(path: Path, scale: float = 1.0, jitter_s: float = 2.0) -> Workload:
    """Returns a recording in Azure's format (columns TIMESTAMP, ContextTokens, GeneratedTokens) with `scale` times as many requests.

    The copies of a request arrive up to `jitter_s` seconds after it, which preserves bursts. Raises OSError if the file cannot be read, and
    ValueError if its contents are invalid.
    """
    if scale <= 0:
        raise ValueError(f"scale {scale} is invalid; it must be positive")
    rows = _read_azure(path)
    return Workload(f"azure:{path.stem}", rows[-1][0] + jitter_s, partial(_copied, rows, scale, jitter_s))


def _read_azure(path: Path) -> list[tuple[float, int, int]]:
    rows: list[tuple[float, int, int]] = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _AZURE_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: column {missing[0]!r} is missing; Azure's format has {', '.join(_AZURE_COLUMNS)}")
        for number, row in enumerate(reader, start=2):
            try:
                moment = datetime.fromisoformat(row["TIMESTAMP"][:_TIMESTAMP_CHARACTERS]).timestamp()
                rows.append((moment, *clipped(int(row["ContextTokens"]), int(row["GeneratedTokens"]))))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    if not rows:
        raise ValueError(f"{path}: the file has no requests")
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
    """Returns the traffic of many tenants modelled on ServeGen's clients.

    Each tenant has its rate, its burstiness (coefficient of variation of the gaps) and its lengths in windows of 600 s. `begin_s` is the
    start within the recorded two weeks. All rates are scaled to a total of `mean_rate` requests per second, and lengths are clipped to the
    context. Clients without recorded lengths get those of a random other client. Raises ValueError if the recording has no rates in this
    period.
    """
    rates = _read_rates(folder / "servegen_m-small_client_rates.csv", begin_s, duration_s)
    if not rates:
        raise ValueError(f"the recording has no rates from begin_s {begin_s} for duration_s {duration_s}")
    lengths = _read_quantiles(folder / "servegen_m-small_token_quantiles.csv")
    recorded = sum(rate for windows in rates.values() for _, rate, _ in windows) * 600 / duration_s
    factor = mean_rate / recorded
    return Workload("servegen", duration_s, partial(_tenants, rates, lengths, factor, duration_s))


_Windows = dict[str, list[tuple[float, float, float]]]
_Lengths = dict[str, dict[str, tuple[float, ...]]]
_QUANTILES = (0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)
_QUANTILE_COLUMNS = ("p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "max")


def _read_rates(path: Path, begin_s: float, duration_s: float) -> _Windows:
    """Returns by client, for each window: its start relative to begin_s, the rate, and the coefficient of variation of the gaps."""
    rates: _Windows = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            at_s = float(row["t_s"]) - begin_s
            if 0 <= at_s < duration_s:
                rates[row["client"]].append((at_s, float(row["rate_rps"]), float(row["iat_cv"])))
    return dict(rates)


def _read_quantiles(path: Path) -> _Lengths:
    """Returns the quantiles of the first window by client and field."""
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
    """Returns arrival times with gamma-distributed gaps of mean 1/rate and coefficient of variation `cv`.

    A window starts at a random position within a gap.
    """
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
    """Log-normal distributions of prompt and output lengths."""

    prompt_tokens: float = 600.0
    """Median prompt length."""
    output_tokens: float = 200.0
    """Median output length."""
    sigma: float = 0.7
    """Standard deviation of the logarithm of both lengths."""

    def draw(self, rng: Random) -> tuple[int, int]:
        """Returns the prompt and output length of one request, which fit the context."""
        prompt_tokens = self.prompt_tokens * math.exp(self.sigma * rng.gauss(0, 1))
        return clipped(int(prompt_tokens), int(self.output_tokens * math.exp(self.sigma * rng.gauss(0, 1))))


CHAT = Lengths()
"""Lengths of chat requests."""


class Rate(Protocol):
    """An arrival rate over time."""

    @property
    def max_rate(self) -> float:
        """Upper bound of the rate, in requests per second."""
        ...

    def __call__(self, now_s: float, seed: int) -> float:
        """Returns the rate at `now_s`, in requests per second."""
        ...


def varying(name: str, duration_s: float, rate: Rate, lengths: Lengths = CHAT, tenants: int = 20, step_s: float | None = None) -> Workload:
    """Returns traffic with Poisson arrivals whose rate changes with time.

    Source: thinning, Lewis and Shedler, Naval Research Logistics Quarterly 26, 1979.
    """
    return Workload(name, duration_s, partial(_thinned, duration_s, rate, lengths, tenants), step_s)


def _thinned(duration_s: float, rate: Rate, lengths: Lengths, tenants: int, seed: int) -> Iterator[Request]:
    rng, max_rate = Random(seed), rate.max_rate
    now_s = rng.expovariate(max_rate)
    while now_s < duration_s:
        if rng.random() * max_rate < rate(now_s, seed):
            yield Request(now_s, *lengths.draw(rng), tenant=rng.randrange(tenants))
        now_s += rng.expovariate(max_rate)


@dataclass(frozen=True, slots=True)
class Bursts:
    """Bursts on top of a rate."""

    per_day: float = 12.0
    """Number of bursts in each day, at random times."""
    duration_s: float = 300.0
    """Length of a burst, including both ramps."""
    ramp_s: float = 60.0
    """Time in which the rate rises to the maximum, and in which it falls back."""
    factor: float = 1.5
    """Factor of the rate at the maximum."""

    def factor_at(self, since_s: float) -> float:
        """Returns the factor of the rate at a time after the start of a burst."""
        if not 0 <= since_s < self.duration_s:
            return 1.0
        return 1 + (self.factor - 1) * min(1.0, since_s / self.ramp_s, (self.duration_s - since_s) / self.ramp_s)


@dataclass(frozen=True, slots=True)
class _Wave:
    mean_rate: float
    day_s: float
    depth: float
    bursts: Bursts

    @property
    def max_rate(self) -> float:
        return self.mean_rate * (1 + self.depth) * max(1.0, self.bursts.factor)

    def __call__(self, now_s: float, seed: int) -> float:
        factor = 1.0
        for begin_s in self._begins_s(seed, int(now_s / self.day_s)):
            factor = max(factor, self.bursts.factor_at(now_s - begin_s))
        return factor * self.mean_rate * (1 - self.depth * math.cos(2 * math.pi * now_s / self.day_s))

    @lru_cache(maxsize=16)  # noqa: B019 - it is frozen and small
    def _begins_s(self, seed: int, day: int) -> tuple[float, ...]:
        rng = Random(f"bursts {seed} {day}")
        return tuple(self.day_s * (day + rng.random()) for _ in range(round(self.bursts.per_day)))


def diurnal(mean_rate: float, day_s: float = 86_400.0, days: float = 1.0, depth: float = 0.7, bursts: Bursts = Bursts()) -> Workload:
    """Returns traffic with a daily wave, lowest at the start of each day, and bursts at random times.

    `mean_rate` is in requests per second. `depth` is the amplitude of the wave as a fraction of the mean.
    """
    return varying("diurnal", day_s * days, _Wave(mean_rate, day_s, depth, bursts))


@dataclass(frozen=True, slots=True)
class _Jump:
    before_rate: float
    factor: float
    step_s: float

    @property
    def max_rate(self) -> float:
        return self.before_rate * max(1.0, self.factor)

    def __call__(self, now_s: float, seed: int) -> float:
        return self.before_rate * (self.factor if now_s >= self.step_s else 1.0)


def step(before_rate: float, factor: float, step_s: float, duration_s: float) -> Workload:
    """Returns traffic with a steady rate that is multiplied by `factor` at `step_s`."""
    return varying("step", duration_s, _Jump(before_rate, factor, step_s), step_s=step_s)
