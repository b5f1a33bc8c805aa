"""What Serve's controller makes of a stored verdict."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from autoscaling.ray_adapter import OLDEST_S, WantedReplicas, stored_verdict, wanted_of


@dataclass
class Context:
    deployment_name: str = "generation"
    target_num_replicas: int = 2
    raw_metrics: dict[str, Any] = field(default_factory=dict)


class Policy(WantedReplicas):
    """With a store of the test's."""

    found: int | None = None

    def _look(self) -> int | None:
        return self.found


def test_verdict_that_is_fresh_counts_and_an_old_or_missing_one_does_not() -> None:
    stored = stored_verdict(3, "why", at_s=100.0)
    assert wanted_of(stored, 100.0 + OLDEST_S) == 3
    assert wanted_of(stored, 101.0 + OLDEST_S) is None
    assert wanted_of(None, 0.0) is None


@pytest.mark.parametrize(("found", "wanted"), [(None, 2), (5, 5), (0, 0)])
def test_policy_does_what_was_decided_or_keeps_the_size(found: int | None, wanted: int) -> None:
    policy = Policy("generation")
    policy.found = found
    assert policy(Context()) == (wanted, {})


def test_policy_keeps_the_last_replica_while_requests_are_reported_on_it() -> None:
    policy = Policy("generation")
    policy.found = 0
    busy = {"requests": {"r": [SimpleNamespace(timestamp=0.0, value=2.0)]}}
    assert policy(Context(target_num_replicas=1, raw_metrics=busy))[0] == 1
