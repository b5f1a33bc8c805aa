"""What the router measures about itself."""

import re
from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from neox_serve.core.cluster import ScalingView
from neox_serve.core.scheduling.admissions import Admissions
from neox_serve.core.scheduling.cluster_state import ClusterState
from neox_serve.core.types import Pool
from neox_serve.router.metrics_page import text_of

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DECISION_BUCKETS_S = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1)


class RouterMetrics:
    """Counters and gauges of one router."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._admissions = Counter(
            "neox_serve_router_admissions", "Answers to requests for admission", ["outcome"], registry=self._registry
        )
        self._decision_s = Histogram(
            "neox_serve_router_decision_seconds", "Time of one decision", buckets=_DECISION_BUCKETS_S, registry=self._registry
        )
        self._left_queue = Counter(
            "neox_serve_router_left_queue",
            "Requests that wait no more, by what became of them",
            ["outcome"],
            registry=self._registry,
        )
        self._reservations = Counter(
            "neox_serve_router_reservations", "Answers to reservations of quotas", ["outcome"], registry=self._registry
        )
        self._queued = Gauge("neox_serve_router_queued_requests", "Requests that wait for a replica", ["pool"], registry=self._registry)
        self._queued_tokens = Gauge("neox_serve_router_queued_tokens", "Tokens that those claim", ["pool"], registry=self._registry)
        self._leases = Gauge("neox_serve_router_leases", "Requests dispatched and not ended", ["pool"], registry=self._registry)
        self._tokens = Gauge("neox_serve_router_outstanding_tokens", "Tokens that leases claim", ["pool"], registry=self._registry)
        self._replicas = Gauge("neox_serve_router_replicas", "Replicas known", ["pool", "phase"], registry=self._registry)
        self._blocks = Gauge("neox_serve_router_indexed_blocks", "Blocks in the prefix caches of replicas", registry=self._registry)
        self._missed = Counter(
            "neox_serve_router_missed_block_news", "Times that a replica had to tell all of its prefix cache anew", registry=self._registry
        )
        self._gateways = Gauge("neox_serve_router_gateways", "Gateways known", registry=self._registry)
        self._wanted = Gauge("neox_serve_wanted_replicas", "Replicas that a pool should have", ["pool"], registry=self._registry)
        self._alarm = Gauge(
            "neox_serve_scaling_alarm", "1 where the scaling policy fails and the size is kept", ["pool"], registry=self._registry
        )
        self._reason = Gauge(
            "neox_serve_scaling_reason", "1 at why a pool has its size, with _ for numbers", ["pool", "reason"], registry=self._registry
        )
        self._changes = Counter(
            "neox_serve_scaling_changes", "Times that a pool was made larger or smaller", ["pool", "direction"], registry=self._registry
        )
        self._scaling: dict[Pool, ScalingView] = {}

    def admitted(self, outcome: str, seconds: float) -> None:
        """One decision. outcome: "granted", or the refusal's reason."""
        self._admissions.labels(outcome).inc()
        self._decision_s.observe(seconds)

    def left_queue(self, outcome: str) -> None:
        """A request waits no more."""
        self._left_queue.labels(outcome).inc()

    def reserved(self, outcome: str) -> None:
        """A reservation was answered."""
        self._reservations.labels(outcome).inc()

    def missed_block_news(self) -> None:
        """News of a replica's prefix cache did not come."""
        self._missed.inc()

    def show(self, state: ClusterState, admissions: Admissions) -> None:
        """Sets the gauges."""
        waiting = {pool: [admissions.queue.depth(lane) for lane in admissions.queue.lanes() if lane[0] is pool] for pool in Pool}
        for pool, depths in waiting.items():
            self._queued.labels(pool).set(sum(requests for requests, _ in depths))
            self._queued_tokens.labels(pool).set(sum(tokens for _, tokens in depths))
        self._gateways.set(state.gateway_count())
        self._blocks.set(state.block_count())
        for pool in Pool:
            outstanding = state.outstanding_in(pool)
            self._leases.labels(pool).set(outstanding.requests)
            self._tokens.labels(pool).set(outstanding.tokens)
        self._replicas.clear()
        for (pool, phase), replicas in Tally((each.pool, each.phase) for each in state.replicas()).items():
            self._replicas.labels(pool, phase).set(replicas)

    def show_scaling(self, scaling: Iterable[ScalingView]) -> None:
        """Sets what was decided. Without their numbers reasons are few, and so are the series."""
        for each in scaling:
            self._wanted.labels(each.pool).set(each.wanted_replicas)
            self._alarm.labels(each.pool).set(each.alarm)
            self._reason.remove_by_labels({"pool": each.pool})
            self._reason.labels(each.pool, _NUMBER.sub("_", each.reason)).set(1)
            before = self._scaling.get(each.pool, each).wanted_replicas
            if each.wanted_replicas != before:
                self._changes.labels(each.pool, "up" if each.wanted_replicas > before else "down").inc()
            self._scaling[each.pool] = each

    def text(self) -> str:
        """All of it in Prometheus' text format."""
        return text_of(self._registry)
