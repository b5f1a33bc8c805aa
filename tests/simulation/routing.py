"""Sends recorded traffic through the router's core to simulated engines, to compare routing policies.

An engine's cache changes reach the router at the end of the step that made them, as in a cluster, and a lease is settled when its request
ends. Requests arrive with the recorded gaps, all scaled by the same factor until the engines get the requested load.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle
from random import Random

from neox_serve.core.cluster import Demand, Replica
from neox_serve.core.prefix_cache.block_hashes import reusable_blocks, root
from neox_serve.core.prefix_cache.block_index import BlockNews
from neox_serve.core.scheduling.cluster_state import ClusterState, Grant
from neox_serve.core.scheduling.routing import DEFAULT_POLICY
from neox_serve.core.types import Pool
from neox_serve.loadgen.summaries import percentile
from neox_serve.loadgen.trace_files import MOONCAKE_BLOCK_TOKENS
from neox_serve.loadgen.traces import Recorded
from tests.simulation.engines import SimulatedEngine, Speed, Step, Work

ROUND_ROBIN = "round-robin"
_MODEL = "m"
_GATEWAY = "g"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests in order of arrival, the first at 0 s. block_tokens: tokens per block of the engines' caches."""

    requests: Sequence[Work]
    block_tokens: int

    def arriving(self, prompt_tokens_per_s: float) -> Iterator[Work]:
        """Returns the requests, not yet started, at this mean rate."""
        slowness = self.prompt_tokens / prompt_tokens_per_s / self.requests[-1].came_s
        for each in self.requests:
            yield Work(each.came_s * slowness, each.blocks, each.prompt_tokens, each.output_tokens)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all requests."""
        return sum(each.prompt_tokens for each in self.requests)

    @property
    def distinct_blocks(self) -> int:
        """Number of distinct blocks."""
        return len({block for each in self.requests for block in each.blocks})

    @property
    def ideal_hit_fraction(self) -> float:
        """Number of prompt tokens that a single unbounded cache would serve."""
        seen: set[int] = set()
        spared = 0
        for each in self.requests:
            held = next((number for number, block in enumerate(each.blocks) if block not in seen), len(each.blocks))
            spared += held * self.block_tokens
            seen.update(each.blocks)
        return spared / self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Cluster:
    """The simulated cluster. capacity_blocks: cache size per replica. load: 1 if the prompts would exactly occupy it without caches."""

    replicas: int
    capacity_blocks: int
    load: float
    speed: Speed = Speed()  # noqa: RUF009 - frozen

    @property
    def prompt_tokens_per_s(self) -> float:
        """Mean arrival rate of prompt tokens."""
        return self.load * self.replicas * self.speed.prompt_tokens_per_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run. loads: tokens that each replica computed."""

    requests: int
    hit_fraction: float
    ttft_p50_s: float
    ttft_p90_s: float
    loads: tuple[int, ...]

    @property
    def highest_load(self) -> float:
        """Largest load of a replica, relative to the mean."""
        return max(self.loads) * len(self.loads) / sum(self.loads)


def recorded_traffic(recorded: Recorded) -> Traffic:
    """Returns a Mooncake recording with lengths and blocks scaled by its divisor."""
    block_tokens = MOONCAKE_BLOCK_TOKENS // recorded.divisor
    requests = []
    for request in recorded.requests():
        if isinstance(request.prompt, str) or request.recorded_s is None:
            raise ValueError(f"{recorded.path}: not a recording with times and blocks")
        blocks = reusable_blocks(root(_MODEL), request.prompt, block_tokens)
        requests.append(Work(request.recorded_s, blocks, len(request.prompt), request.output_tokens))
    return Traffic(requests, block_tokens)


def run(traffic: Traffic, cluster: Cluster, policy: str, **options: int) -> Outcome:
    """Runs all traffic with a policy of core.scheduling.routing or ROUND_ROBIN. options: further arguments of ClusterState."""
    return _Run(traffic, cluster, policy, **options).outcome()


class _Run:
    """Processes events in order of time: arrivals of requests and ends of steps."""

    def __init__(self, traffic: Traffic, cluster: Cluster, policy: str, **options: int) -> None:
        self._traffic = traffic
        self._prompt_tokens_per_s = cluster.prompt_tokens_per_s
        chosen = DEFAULT_POLICY if policy == ROUND_ROBIN else policy
        self._state = ClusterState(grace_s=1.0, started_s=0.0, rng=Random(0), policy=chosen, **options)
        names = [f"replica-{number}" for number in range(cluster.replicas)]
        self._engines = {name: SimulatedEngine(cluster.speed, cluster.capacity_blocks, traffic.block_tokens) for name in names}
        self._news = {name: count(1) for name in names}
        self._turn = cycle(names) if policy == ROUND_ROBIN else None
        self._stepping: set[str] = set()
        self._leases: dict[int, int] = {}
        self._ids = count(1)
        self._events: list[tuple[float, int, str, Step]] = []
        self._ended: list[Work] = []
        self._now_s = 0.0
        self._state.connect_gateway(_GATEWAY, (), 0, 0.0)
        for name in names:
            self._state.connect_replica(Replica(name, Pool.GENERATION, _MODEL, f"{name}:1", 10**6), 0, 0.0)
            self._state.take_block_news(name, 0, BlockNews(0, restarts=True))

    def outcome(self) -> Outcome:
        """Runs the simulation to its end."""
        for work in self._traffic.arriving(self._prompt_tokens_per_s):
            while self._events and self._events[0][0] <= work.came_s:
                self._end_step()
            self._now_s = work.came_s
            self._send(work)
        while self._events:
            self._end_step()
        ttfts_s = [(work.first_token_s or 0.0) - work.came_s for work in self._ended]
        return Outcome(
            requests=len(self._ended),
            hit_fraction=sum(work.cached_tokens for work in self._ended) / sum(work.prompt_tokens for work in self._ended),
            ttft_p50_s=percentile(ttfts_s, 0.5),
            ttft_p90_s=percentile(ttfts_s, 0.9),
            loads=tuple(engine.computed_tokens for engine in self._engines.values()),
        )

    def _send(self, work: Work) -> None:
        demand = Demand(
            Pool.GENERATION, _MODEL, work.prompt_tokens, work.output_tokens, blocks=work.blocks, block_tokens=self._traffic.block_tokens
        )
        lease_id = next(self._ids)
        name = next(self._turn) if self._turn else self._granted(lease_id, demand)
        self._leases[id(work)] = lease_id
        self._engines[name].submit(work)
        if name not in self._stepping:
            self._begin_step(name)

    def _granted(self, lease_id: int, demand: Demand) -> str:
        grant = self._state.admit(_GATEWAY, lease_id, demand, self._now_s)
        assert isinstance(grant, Grant)
        return grant.replica_id

    def _begin_step(self, name: str) -> None:
        """Starts a step. Its result is computed at once and applied at its end."""
        step = self._engines[name].step(self._now_s)
        self._stepping.add(name)
        heapq.heappush(self._events, (step.ends_s, next(self._ids), name, step))

    def _end_step(self) -> None:
        self._now_s, _, name, step = heapq.heappop(self._events)
        if step.news.stored or step.news.removed:
            self._state.take_block_news(name, 0, BlockNews(next(self._news[name]), step.news.stored, step.news.removed))
        self._state.settle(_GATEWAY, [self._leases.pop(id(work)) for work in step.ended])
        self._ended += step.ended
        self._stepping.remove(name)
        if not self._engines[name].idle:
            self._begin_step(name)
