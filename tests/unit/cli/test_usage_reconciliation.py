"""Usage records held against the engines' own counters."""

from neox_serve.cli.usage_reconciliation import EngineCounters, Reconciled, engine_counters, overcharged, reconciled
from neox_serve.v1.admin_service_pb2 import ReplicaUsage

PAGE = """
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{engine="0",instance="r1"} 100
vllm:prompt_tokens_total{engine="1",instance="r1"} 20
vllm:prompt_tokens_total{engine="0",instance="r2"} 5
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0",instance="r1"} 50
# TYPE other counter
other_total 7
"""


def test_counters_of_a_replica_are_summed_over_its_engines() -> None:
    assert engine_counters(PAGE) == {"r1": EngineCounters(120, 50), "r2": EngineCounters(5, 0)}


def test_reconciled_excludes_replicas_that_are_gone_or_have_no_records() -> None:
    recorded = [
        ReplicaUsage(replica_id="r1", prompt_tokens=110, completion_tokens=50),
        ReplicaUsage(replica_id="gone", completion_tokens=9),
    ]
    assert reconciled(recorded, engine_counters(PAGE)) == [Reconciled("r1", EngineCounters(110, 50), EngineCounters(120, 50))]


def test_overcharged_finds_replicas_with_more_recorded_than_generated_tokens() -> None:
    compared = [
        Reconciled("fair", EngineCounters(1, 50), EngineCounters(1, 50)),
        Reconciled("wrong", EngineCounters(1, 51), EngineCounters(1, 50)),
    ]
    assert overcharged(compared) == ["wrong"]
