"""Measures the routing goals on Mooncake's recording, with 8 simulated replicas.

Lengths and blocks are divided by 8 to fit a model with 2048 positions. At load 1, requests arrive at the rate at which their prompts would
exactly occupy the replicas if nothing were cached: a policy that wastes the caches has queues, and one that uses them has none. At half of
that load no request waits, and with any policy the p90 of TTFT is the time of a full prompt that is not cached.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from neox_serve.loadgen.traces import recorded_in
from tests.simulation.routing import ROUND_ROBIN, Cluster, Outcome, Traffic, recorded_traffic, run

PATH = Path(__file__).parents[3] / "shared" / "data" / "traces" / "mooncake_synthetic_trace.jsonl"
REPLICAS = 8
LOAD = 1.0
_POSITIONS = 2048
_VOCABULARY = 50_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Three policies on the same traffic. ideal_hit_fraction: hit rate of a single unbounded cache."""

    ideal_hit_fraction: float
    kv_aware: Outcome
    fewest_tokens: Outcome
    round_robin: Outcome

    @property
    def hits_over_ideal(self) -> float:
        """The figure of the kv-aware policy."""
        return self.kv_aware.hit_fraction / self.ideal_hit_fraction

    @property
    def ttft_p90_over_min_tokens(self) -> float:
        """The figure of the kv-aware policy."""
        return self.kv_aware.ttft_p90_s / self.fewest_tokens.ttft_p90_s

    @property
    def ttft_p90_over_round_robin(self) -> float:
        """The figure of the kv-aware policy."""
        return self.kv_aware.ttft_p90_s / self.round_robin.ttft_p90_s


@cache
def traffic() -> Traffic:
    """Reads the scaled recording. Raises TraceError if it does not exist."""
    return recorded_traffic(recorded_in(PATH, max_model_len=_POSITIONS, vocabulary_size=_VOCABULARY))


def cluster(load: float = LOAD, copies: float = 2.0) -> Cluster:
    """Returns the cluster. copies: total cache capacity in multiples of the recording's distinct blocks; from 1 on they fit."""
    return Cluster(REPLICAS, int(copies * traffic().distinct_blocks / REPLICAS), load)


@cache
def compare() -> Comparison:
    """Runs the three policies with caches that hold all prefixes, in about two seconds. Raises TraceError."""
    outcomes = (run(traffic(), cluster(), policy) for policy in ("kv-aware", "least-tokens", ROUND_ROBIN))
    return Comparison(traffic().ideal_hit_fraction, *outcomes)
