"""The router's own metrics."""

import re
from collections import Counter as Tally
from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from neox_serve.core.cluster import ScalingView
from neox_serve.core.scheduling.admissions import Admissions
from neox_serve.core.scheduling.cluster_state import ClusterState
from neox_serve.core.types import Pool
from neox_serve.router.metrics_page import text_of

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
"""Numbers in a scaling reason. They are replaced, so that the label has few values."""
_DECISION_BUCKETS_S = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1)


class RouterMetrics:
    """Counters and gauges of one router."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self._registry), partial(Gauge, registry=self._registry)
        self._admissions = counter("neox_serve_router_admissions", "Replies to admission requests, by outcome", ["outcome"])
        self._decision_s = Histogram(
            "neox_serve_router_decision_seconds",
            "Duration of one admission decision",
            buckets=_DECISION_BUCKETS_S,
            registry=self._registry,
        )
        self._left_queue = counter("neox_serve_router_left_queue", "Requests that left the queue, by outcome", ["outcome"])
        self._reservations = counter("neox_serve_router_reservations", "Replies to quota reservations, by outcome", ["outcome"])
        self._queued = gauge("neox_serve_router_queued_requests", "Requests in the queue", ["pool"])
        self._queued_tokens = gauge("neox_serve_router_queued_tokens", "Tokens that the requests in the queue claim", ["pool"])
        self._leases = gauge("neox_serve_router_leases", "Leases on replicas that have not ended", ["pool"])
        self._tokens = gauge("neox_serve_router_outstanding_tokens", "Uncached tokens that these leases claim", ["pool"])
        self._replicas = gauge("neox_serve_router_replicas", "Replicas that the router knows, by phase", ["pool", "phase"])
        self._blocks = gauge("neox_serve_router_indexed_blocks", "Blocks known to be in the prefix caches of replicas")
        self._missed = counter("neox_serve_router_missed_block_news", "Missed prefix cache updates; each causes a full report")
        self._gateways = gauge("neox_serve_router_gateways", "Gateways that the router knows")
        self._wanted = gauge("neox_serve_wanted_replicas", "Replicas that a pool should have, as the scaling policy decided", ["pool"])
        self._alarm = gauge("neox_serve_scaling_alarm", "1 if the scaling policy fails and the pool keeps its size", ["pool"])
        reason = "1 for the reason of a pool's size; numbers in it are replaced by _"
        self._reason = gauge("neox_serve_scaling_reason", reason, ["pool", "reason"])
        self._changes = counter("neox_serve_scaling_changes", "Decisions to make a pool larger or smaller", ["pool", "direction"])
        self._scaling: dict[Pool, ScalingView] = {}

    def admitted(self, outcome: str, seconds: float) -> None:
        """Counts an admission decision and the seconds it took. outcome: "granted", "queued" or the reason of the refusal."""
        self._admissions.labels(outcome).inc()
        self._decision_s.observe(seconds)

    def left_queue(self, outcome: str) -> None:
        """Counts a request that left the queue. outcome: as for `admitted`, or "preempted"."""
        self._left_queue.labels(outcome).inc()

    def reserved(self, outcome: str) -> None:
        """Counts a reply to a reservation request. outcome: "reserved" or the reason of the refusal."""
        self._reservations.labels(outcome).inc()

    def missed_block_news(self) -> None:
        """Counts a missed update of a replica's prefix cache."""
        self._missed.inc()

    def show(self, state: ClusterState, admissions: Admissions) -> None:
        """Sets the gauges to the present state."""
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
        """Sets the gauges of scaling, and counts changes of a pool's size."""
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
        """Returns all metrics in Prometheus' text format."""
        return text_of(self._registry)
