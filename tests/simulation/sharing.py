"""Simulates sharing: the router's own admission and quota code over replicas whose steps take virtual time.

A replica runs up to `places` requests. A step takes STEP_S plus STEP_PER_REQUEST_S for each request, gives each request one token, and
computes prompts at PROMPT_TOKENS_PER_S on the side. Requests therefore take longer if more of them run, as on a real engine. The seed
determines everything.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

from neox_serve.core.cluster import Demand, Replica, Settled, Terms
from neox_serve.core.errors import ServeError
from neox_serve.core.scheduling.admissions import Admissions, Notification, Queued
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.core.scheduling.fair_counters import cost
from neox_serve.core.scheduling.fair_queue import QueueLimits
from neox_serve.core.tenancy.quota import DAY_S, QuotaLedger, Reservation
from neox_serve.core.tenancy.tenants import PriorityClass, Quotas
from neox_serve.core.types import Pool

STEP_S = 0.02
STEP_PER_REQUEST_S = 0.0005
PROMPT_TOKENS_PER_S = 20_000.0
START_S = 20_000 * DAY_S
NO_QUOTAS = Quotas()
NO_LIMITS = QueueLimits(max_requests=100_000, max_tokens=1 << 40, max_wait_s=1e9)
_TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class Sent:
    """One request, with its tenant's quotas."""

    at_s: float
    tenant: str
    prompt_tokens: int
    output_tokens: int
    weight: float = 1.0
    priority: PriorityClass = PriorityClass.DEFAULT
    time_left_s: float = math.inf
    quotas: Quotas = NO_QUOTAS


@dataclass(slots=True)
class Served:
    """The times of a request's events; None for those that have not happened."""

    sent: Sent
    granted_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    refused_s: float | None = None

    @property
    def ttft_s(self) -> float:
        """TTFT; infinite if the request was refused."""
        return math.inf if self.first_token_s is None else self.first_token_s - self.sent.at_s


@dataclass(slots=True)
class Cluster:
    """Replicas behind one router. fair False: first come, first served for all tenants."""

    replicas: int
    places: int
    limits: QueueLimits = NO_LIMITS
    fair: bool = True
    seed: int = 0
    results: list[Served] = field(default_factory=list)
    deepest_queue: int = 0

    def run(self, traffic: Iterable[Sent], until_s: float = math.inf) -> list[Served]:
        """Serves all requests in order of arrival, or only until a given time."""
        _Run(self).go(sorted(traffic, key=lambda sent: sent.at_s), until_s)
        return self.results


class _Run:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._rng = Random(cluster.seed)
        self._state = ClusterState(grace_s=3.0, started_s=-100.0, rng=self._rng)
        self._state.connect_gateway("g", (), 1, 0.0)
        for number in range(cluster.replicas):
            self._state.connect_replica(Replica(f"r{number}", Pool.GENERATION, "m", f"r{number}:1", cluster.places), 1, 0.0)
        self._admissions = Admissions(self._state, cluster.limits)
        self._ledger = QuotaLedger(self._rng)
        self._running: dict[str, dict[int, float]] = {f"r{number}": {} for number in range(cluster.replicas)}
        self._events: list[tuple[float, int, str, int]] = []
        self._order = count()

    def go(self, traffic: Sequence[Sent], until_s: float) -> None:
        for sent in traffic:
            self._cluster.results.append(Served(sent))
            self._at(sent.at_s, "arrive", len(self._cluster.results) - 1)
        self._at(0.0, "tick", 0)
        open_ones = len(traffic)
        while self._events and open_ones:
            now_s, _, what, number = heapq.heappop(self._events)
            if now_s > until_s:
                return
            match what:
                case "arrive":
                    open_ones -= self._arrive(number, now_s)
                case "end":
                    open_ones -= 1
                    self._end(number, now_s)
                case _:
                    open_ones -= self._tell(self._admissions.expire(now_s), now_s)
                    self._at(now_s + _TICK_S, "tick", 0)
            open_ones -= self._tell(self._admissions.grant_next(now_s), now_s)
            self._cluster.deepest_queue = max(self._cluster.deepest_queue, len(self._admissions.queue))

    def _arrive(self, number: int, now_s: float) -> int:
        """Ends finished requests and returns their number."""
        sent = self._cluster.results[number].sent
        asked = Reservation(number, sent.tenant, sent.prompt_tokens + sent.output_tokens)
        if sent.quotas != NO_QUOTAS and self._ledger.reserve("g", asked, sent.quotas, START_S + now_s) is not None:
            self._cluster.results[number].refused_s = now_s
            return 1
        terms = Terms(sent.tenant if self._cluster.fair else "everybody", sent.weight, sent.priority, sent.time_left_s)
        demand = Demand(Pool.GENERATION, "m", sent.prompt_tokens, sent.output_tokens, terms=terms)
        return self._tell(self._admissions.admit("g", number, demand, now_s), now_s)

    def _tell(self, answers: list[Notification], now_s: float) -> int:
        refused = 0
        for answer in answers:
            served = self._cluster.results[answer.lease_id]
            match answer.outcome:
                case Grant(replica_id):
                    self._start(served, answer.lease_id, replica_id, now_s)
                case ServeError():
                    served.refused_s = now_s
                    refused += 1
                case Queued():
                    pass
        return refused

    def _start(self, served: Served, number: int, replica_id: str, now_s: float) -> None:
        running = self._running[replica_id]
        step_s = STEP_S + STEP_PER_REQUEST_S * (len(running) + 1)
        served.granted_s = now_s
        served.first_token_s = now_s + served.sent.prompt_tokens / PROMPT_TOKENS_PER_S + step_s
        running[number] = served.first_token_s + step_s * (served.sent.output_tokens - 1)
        self._at(running[number], "end", number)

    def _end(self, number: int, now_s: float) -> None:
        served = self._cluster.results[number]
        served.ended_s = now_s
        for running in self._running.values():
            running.pop(number, None)
        self._admissions.settle("g", Settled(number, 0, served.sent.output_tokens), now_s)
        self._ledger.settle("g", number, served.sent.prompt_tokens + served.sent.output_tokens, START_S + now_s)

    def _at(self, when_s: float, what: str, number: int) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), what, number))


def poisson(rng: Random, per_s: float, until_s: float) -> Iterator[float]:
    """Returns arrival times."""
    now_s = rng.expovariate(per_s)
    while now_s < until_s:
        yield now_s
        now_s += rng.expovariate(per_s)


def work_by_tenant(results: Iterable[Served], from_s: float, until_s: float) -> dict[str, float]:
    """Returns each tenant's service within a period, with the costs of fair sharing. A request counts by its part within the period."""
    work: dict[str, float] = defaultdict(float)
    for served in results:
        if served.granted_s is not None and served.ended_s is not None:
            within_s = min(served.ended_s, until_s) - max(served.granted_s, from_s)
            part = max(0.0, within_s) / (served.ended_s - served.granted_s)
            work[served.sent.tenant] += part * cost(served.sent.prompt_tokens, 0, served.sent.output_tokens) / served.sent.weight
    return work


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index: 1 if all are equal, 1/n if one has everything. Source: Jain, Chiu and Hawe, DEC-TR-301, 1984."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def percentile(values: Iterable[float], fraction: float) -> float:
    """Returns the smallest value that is not exceeded by this fraction of the values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]
