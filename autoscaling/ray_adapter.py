"""Lets Ray Serve's controller do what was decided beside the router, where all signals are and a pool at zero is seen too.

The router's process puts each pool's verdict into Ray's key-value store, which outlives it and the controller; the controller asks the
policy here every 0.1 s, and this looks into the store twice a second (one call to Ray's head, about a millisecond). A verdict that is
missing keeps the present size, and so does one that is old: nothing is decided where nobody looks. Replicas report what runs on them by
`record_autoscaling_stats`; while they do, the last one stays. Standard library only, but for Ray itself inside the controller.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

_log = logging.getLogger("ray.serve")

REQUESTS_METRIC = "requests"
VERDICT_NAMESPACE = b"neox-serve-scaling"
OLDEST_S = 15.0
"""A verdict older than this says nothing any more. A router that restarts takes some seconds."""
_LOOK_S = 0.5


class TimedValue(Protocol):
    """A report: `value` as of `timestamp` (seconds since the epoch)."""

    @property
    def timestamp(self) -> float: ...

    @property
    def value(self) -> float: ...


class ServeContext(Protocol):
    """The part of ray.serve.config.AutoscalingContext that is read here."""

    deployment_name: str
    target_num_replicas: int

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Sequence[TimedValue]]]: ...


class WantedReplicas:
    """Serve's policy callable of one pool. Built by Serve from `policy_kwargs`."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._looked_s = -1e9
        self._wanted: int | None = None

    def __call__(self, context: ServeContext) -> tuple[int, dict[str, Any]]:
        """Returns the wanted replica count and no state."""
        if time.monotonic() - self._looked_s >= _LOOK_S:
            self._looked_s = time.monotonic()
            self._wanted = self._look()
        wanted = context.target_num_replicas if self._wanted is None else self._wanted
        if wanted == 0 and requests_reported(context) > 0:
            wanted = min(1, context.target_num_replicas)
        if wanted != context.target_num_replicas:
            _log.info("%s: %d -> %d replicas", context.deployment_name, context.target_num_replicas, wanted)
        return wanted, {}

    def _look(self) -> int | None:
        from ray.experimental.internal_kv import _internal_kv_get

        try:
            return wanted_of(_internal_kv_get(self._pool.encode(), namespace=VERDICT_NAMESPACE), time.time())
        except Exception:  # noqa: BLE001 - whatever fails, the cluster keeps its size
            _log.exception("%s: the wanted count cannot be read; the size is kept", self._pool)
            return None


def requests_reported(context: ServeContext) -> float:
    """Requests in flight, as replicas last reported them."""
    return sum(series[-1].value for series in context.raw_metrics.get(REQUESTS_METRIC, {}).values() if series)


def wanted_of(stored: bytes | None, now_s: float) -> int | None:
    """The count in what is stored for a pool; None where there is nothing, or it is old. now_s: seconds since the epoch."""
    if not stored:
        return None
    verdict = json.loads(stored)
    return int(verdict["replicas"]) if now_s - verdict["at_s"] <= OLDEST_S else None


def stored_verdict(replicas: int, reason: str, at_s: float) -> bytes:
    """What `wanted_of` reads. at_s: seconds since the epoch."""
    return json.dumps({"replicas": replicas, "reason": reason, "at_s": at_s}).encode()
