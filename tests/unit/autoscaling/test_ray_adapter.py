"""The policy that Ray Serve's controller calls, and the stored verdicts it reads."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from autoscaling.ray_adapter import MAX_VERDICT_AGE_S, WantedReplicas, parse_verdict, serialize_verdict


@dataclass
class Context:
    deployment_name: str = "generation"
    target_num_replicas: int = 2
    raw_metrics: dict[str, Any] = field(default_factory=dict)


class Policy(WantedReplicas):
    """The policy with a stored verdict that the test sets."""

    found: int | None = None

    def _read_verdict(self) -> int | None:
        return self.found


def test_parse_verdict_stale_or_missing_verdict_is_ignored() -> None:
    stored = serialize_verdict(3, "why", at_s=100.0)
    assert parse_verdict(stored, 100.0 + MAX_VERDICT_AGE_S) == 3
    assert parse_verdict(stored, 101.0 + MAX_VERDICT_AGE_S) is None
    assert parse_verdict(None, 0.0) is None


@pytest.mark.parametrize(("found", "wanted"), [(None, 2), (5, 5), (0, 0)])
def test_policy_follows_the_verdict_or_keeps_the_size_without_one(found: int | None, wanted: int) -> None:
    policy = Policy("generation")
    policy.found = found
    assert policy(Context()) == (wanted, {})


def test_policy_keeps_the_last_replica_while_requests_are_reported_on_it() -> None:
    policy = Policy("generation")
    policy.found = 0
    busy = {"requests": {"r": [SimpleNamespace(timestamp=0.0, value=2.0)]}}
    assert policy(Context(target_num_replicas=1, raw_metrics=busy))[0] == 1
