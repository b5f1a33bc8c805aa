"""The scaling policy that Ray Serve's controller calls. It returns the replica count that was decided in the router's process.

The router's process has all signals and also sees a pool that is scaled to zero. It writes each pool's verdict to Ray's key-value store,
which outlives both the router and the controller. The controller calls the policy in this module every 0.1 s, and the policy reads the
store twice a second (one call to Ray's head, about 1 ms). If a verdict is missing or stale, the pool keeps its current size. Replicas
report their in-flight requests with `record_autoscaling_stats`; while they report any, the last replica is kept. This module uses only the
standard library, except for Ray itself inside the controller.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

_log = logging.getLogger("ray.serve")

REQUESTS_METRIC = "requests"
"""Name of the replicas' metric that counts requests in flight."""
VERDICT_NAMESPACE = b"neox-serve-scaling"
"""Namespace of the verdicts in Ray's key-value store."""
MAX_VERDICT_AGE_S = 15.0
"""An older verdict is ignored. A restarting router takes a few seconds."""
_READ_INTERVAL_S = 0.5


class TimedValue(Protocol):
    """One sample of a replica's metric."""

    @property
    def timestamp(self) -> float:
        """Seconds since the epoch."""
        ...

    @property
    def value(self) -> float:
        """The metric's value."""
        ...


class ServeContext(Protocol):
    """The part of `ray.serve.config.AutoscalingContext` that this module reads."""

    deployment_name: str
    """Name of the Serve deployment."""
    target_num_replicas: int
    """The replica count that Serve currently aims for."""

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Sequence[TimedValue]]]:
        """Samples by metric and replica, oldest first."""
        ...


class WantedReplicas:
    """Ray Serve's policy callable for one pool. Serve constructs it from `policy_kwargs`."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._read_at_s = -1e9
        self._wanted: int | None = None

    def __call__(self, context: ServeContext) -> tuple[int, dict[str, Any]]:
        """Returns the wanted replica count and an empty state."""
        if time.monotonic() - self._read_at_s >= _READ_INTERVAL_S:
            self._read_at_s = time.monotonic()
            self._wanted = self._read_verdict()
        wanted = context.target_num_replicas if self._wanted is None else self._wanted
        if wanted == 0 and requests_in_flight(context) > 0:
            wanted = min(1, context.target_num_replicas)
        if wanted != context.target_num_replicas:
            _log.info("replicas_changed deployment=%s before=%d after=%d", context.deployment_name, context.target_num_replicas, wanted)
        return wanted, {}

    def _read_verdict(self) -> int | None:
        from ray.experimental.internal_kv import _internal_kv_get

        try:
            return parse_verdict(_internal_kv_get(self._pool.encode(), namespace=VERDICT_NAMESPACE), time.time())
        except Exception:  # noqa: BLE001 - if anything fails, the pool keeps its size
            _log.exception("scaling_verdict_unreadable pool=%s", self._pool)
            return None


def requests_in_flight(context: ServeContext) -> float:
    """Returns the number of requests in flight that the replicas last reported."""
    return sum(series[-1].value for series in context.raw_metrics.get(REQUESTS_METRIC, {}).values() if series)


def parse_verdict(stored: bytes | None, now_s: float) -> int | None:
    """Returns the replica count of a stored verdict, or None if it is missing or too old. `now_s` is in seconds since the epoch."""
    if not stored:
        return None
    verdict = json.loads(stored)
    return int(verdict["replicas"]) if now_s - verdict["at_s"] <= MAX_VERDICT_AGE_S else None


def serialize_verdict(replicas: int, reason: str, at_s: float) -> bytes:
    """Returns a verdict in the form that `parse_verdict` reads. `at_s` is in seconds since the epoch."""
    return json.dumps({"replicas": replicas, "reason": reason, "at_s": at_s}).encode()
