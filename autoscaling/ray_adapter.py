"""Lets Ray Serve's controller ask our policies. Runs inline in the controller every 0.1 s, so nothing here may block.

A deployment that scales reports `requests` (a float) from `record_autoscaling_stats`; Serve hands the reports over as `raw_metrics`.
Delays before a decision takes effect are Serve's own (`upscale_delay_s`, `downscale_delay_s`).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from autoscaling.policies import target_requests
from autoscaling.signals import PoolSignals, PoolSpec

_log = logging.getLogger("ray.serve")

REQUESTS_METRIC = "requests"


class TimedValue(Protocol):
    """A report: `value` as of `timestamp` (seconds since the epoch)."""

    @property
    def timestamp(self) -> float: ...

    @property
    def value(self) -> float: ...


class ServeContext(Protocol):
    """The part of ray.serve.config.AutoscalingContext that is read here."""

    deployment_name: str
    current_num_replicas: int
    target_num_replicas: int
    current_time: float | None

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Sequence[TimedValue]]]: ...


class TargetRequestsPolicy:
    """Serve's policy callable around `autoscaling.policies.target_requests`. Built by Serve from `policy_kwargs`."""

    def __init__(self, min_replicas: int, max_replicas: int, target_requests: float) -> None:
        self._spec = PoolSpec(min_replicas, max_replicas, target_requests)

    def __call__(self, context: ServeContext) -> tuple[int, dict[str, Any]]:
        """Returns the wanted replica count and no state. Without any report yet it keeps the present target."""
        reports = [series for series in context.raw_metrics.get(REQUESTS_METRIC, {}).values() if series]
        if not reports:
            return context.target_num_replicas, {}
        requests = sum(series[-1].value for series in reports)
        signals = PoolSignals(context.current_time or 0.0, context.current_num_replicas, requests)
        decision = target_requests(signals, self._spec)
        if decision.replicas != context.target_num_replicas:
            _log.info("%s: %d -> %d replicas: %s", context.deployment_name, context.target_num_replicas, decision.replicas, decision.reason)
        return decision.replicas, {}
