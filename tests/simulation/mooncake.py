"""The goals of routing, on Mooncake's recording: lengths and blocks divided by 8 to fit a model of 2048 positions, on 8 simulated replicas.

The requests come as fast as their prompts would just fill the replicas' time if nothing was cached (load 1). There a policy that wastes
what is cached has queues and one that uses it has none. At half of that load nobody queues, and the p90 of the time to the first token is
that of a full prompt that no cache spares, whatever the policy.
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
    """Three policies on the same traffic. ideal_hit_fraction: of one cache without bounds."""

    ideal_hit_fraction: float
    kv_aware: Outcome
    fewest_tokens: Outcome
    round_robin: Outcome

    @property
    def hits_over_ideal(self) -> float:
        """Of kv-aware."""
        return self.kv_aware.hit_fraction / self.ideal_hit_fraction

    @property
    def ttft_p90_over_min_tokens(self) -> float:
        """Of kv-aware."""
        return self.kv_aware.ttft_p90_s / self.fewest_tokens.ttft_p90_s

    @property
    def ttft_p90_over_round_robin(self) -> float:
        """Of kv-aware."""
        return self.kv_aware.ttft_p90_s / self.round_robin.ttft_p90_s


@cache
def traffic() -> Traffic:
    """The recording, scaled. Raises TraceError where it is not there."""
    return recorded_traffic(recorded_in(PATH, max_model_len=_POSITIONS, vocabulary_size=_VOCABULARY))


def cluster(load: float = LOAD, copies: float = 2.0) -> Cluster:
    """copies: how often all caches together hold the distinct blocks of the recording; from 1 on they fit."""
    return Cluster(REPLICAS, int(copies * traffic().distinct_blocks / REPLICAS), load)


@cache
def compare() -> Comparison:
    """The three policies where the prefixes fit. Takes about two seconds. Raises TraceError."""
    outcomes = (run(traffic(), cluster(), policy) for policy in ("kv-aware", "least-tokens", ROUND_ROBIN))
    return Comparison(traffic().ideal_hit_fraction, *outcomes)
