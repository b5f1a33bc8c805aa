"""Compares usage records with the engines' own token counts. Pure.

An engine counts every token that it computes; a usage record counts those that reached the gateway. Tokens computed while a call was being
cancelled, and everything served without a database, are only in the engine's count. So the records never exceed it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from neox_serve.v1.admin_service_pb2 import ReplicaUsage

_PROMPT, _GENERATION = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Tokens that one engine has processed since it started."""

    prompt_tokens: int = 0
    generation_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The two counts of one running replica."""

    replica_id: str
    recorded: EngineCounters
    """Sum of its usage records."""
    counted: EngineCounters
    """Its engine's own count."""


def engine_counters(page: str) -> dict[str, EngineCounters]:
    """The counters of each replica in the text of the metrics page. Several samples of one replica are added up."""
    sums: dict[str, list[int]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in (_PROMPT, _GENERATION):
                counts = sums.setdefault(sample.labels.get("instance", ""), [0, 0])
                counts[sample.name == _GENERATION] += int(sample.value)
    return {replica_id: EngineCounters(*counts) for replica_id, counts in sums.items()}


def reconciled(recorded: Iterable[ReplicaUsage], counted: Mapping[str, EngineCounters]) -> list[Reconciled]:
    """The counts of the replicas that are running and have usage records."""
    return [
        Reconciled(one.replica_id, EngineCounters(one.prompt_tokens, one.completion_tokens), counted[one.replica_id])
        for one in recorded
        if one.replica_id in counted
    ]


def overcharged(compared: Iterable[Reconciled]) -> list[str]:
    """Ids of the replicas whose records have more completion tokens than their engines generated."""
    return [one.replica_id for one in compared if one.recorded.generation_tokens > one.counted.generation_tokens]
