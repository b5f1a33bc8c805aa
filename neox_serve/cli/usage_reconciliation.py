"""Usage records against what the engines counted themselves. Pure.

An engine counts every token that it computes, a record those that reached its gateway: tokens computed for a call that was cancelled in the
same moment are in the first alone, and so is all that was served without a database. So records never say more than the engines.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from neox_serve.v1.admin_service_pb2 import ReplicaUsage

_PROMPT, _GENERATION = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Tokens that one engine read and generated since it started."""

    prompt_tokens: int = 0
    generation_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One replica that runs: what records say of it, and what its engine counted."""

    replica_id: str
    recorded: EngineCounters
    counted: EngineCounters


def engine_counters(page: str) -> dict[str, EngineCounters]:
    """By replica, from the cluster's scrape page. An engine that counts in several samples counts their sum."""
    sums: dict[str, list[int]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in (_PROMPT, _GENERATION):
                counts = sums.setdefault(sample.labels.get("instance", ""), [0, 0])
                counts[sample.name == _GENERATION] += int(sample.value)
    return {replica_id: EngineCounters(*counts) for replica_id, counts in sums.items()}


def reconciled(recorded: Iterable[ReplicaUsage], counted: Mapping[str, EngineCounters]) -> list[Reconciled]:
    """The replicas that run and have records."""
    return [
        Reconciled(one.replica_id, EngineCounters(one.prompt_tokens, one.completion_tokens), counted[one.replica_id])
        for one in recorded
        if one.replica_id in counted
    ]


def overcharged(compared: Iterable[Reconciled]) -> list[str]:
    """Replicas of which more tokens are recorded than they generated."""
    return [one.replica_id for one in compared if one.recorded.generation_tokens > one.counted.generation_tokens]
