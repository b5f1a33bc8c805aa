"""The gateway's metrics. Each gateway has its own registry, so that two gateways of one process share nothing."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from neox_serve.core.tenancy.heavy_hitters import HeavyHitters
from neox_serve.core.types import Pool
from neox_serve.gateway.dispatch.protocol import Dispatcher
from neox_serve.gateway.server.calls import Call

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TPOT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
_TENANT_BUCKETS_S = (0.05, 0.25, 1, 5, 30)
_MAX_TENANTS = 50
"""Tenants that have series of their own."""
_TENANT_CANDIDATES = 1_000
"""Tenants whose recent use is tracked to find the largest ones."""
_TENANT_HALF_LIFE_S = 3_600.0
"""A tenant's recorded use halves in this time."""
OTHER_TENANTS = "other"
"""Label value shared by all tenants without series of their own."""


class GatewayMetrics:
    """Counts calls when they begin and end. Gauges of the dispatcher are read when the metrics page is rendered."""

    def __init__(self, dispatcher: Dispatcher, max_tenants: int = _MAX_TENANTS) -> None:
        """The `max_tenants` tenants that recently used most tokens have series of their own; all others share `other`.

        A tenant that drops out of the largest loses its series, and starts again at zero if it returns. `rate` treats that as a restart,
        and no other counter jumps.
        """
        self._registry = registry = CollectorRegistry()
        self._calls = Counter("neox_serve_gateway_calls", "Calls that ended", ["method", "code", "reason"], registry=registry)
        self._in_flight = Gauge("neox_serve_gateway_calls_in_flight", "Calls that have not ended", ["method"], registry=registry)
        self._ttft = self._latency("time_to_first_token", "Time from the arrival of a call to its first token")
        self._tpot = self._latency("time_per_output_token", "Mean time between the tokens of a call, after the first", _TPOT_BUCKETS_S)
        self._duration = self._latency("call_duration", "Time from the arrival of a call to its end")
        gap = "Time without output after a stream lost its replica, until another replica continued it"
        self._gaps = self._latency("continuation_gap", gap, labels=())
        self._tokens = Counter("neox_serve_gateway_tokens", "Tokens of calls that ended", ["kind"], registry=registry)
        self._prefixes = Counter(
            "neox_serve_gateway_prefix_tokens",
            "Prompt tokens that the router predicted to be cached, those of them that were not (missing), and cached ones not predicted",
            ["kind"],
            registry=registry,
        )
        self._tenants = HeavyHitters(max_tenants, candidates=_TENANT_CANDIDATES, half_life_s=_TENANT_HALF_LIFE_S)
        self._tenant_calls = Counter("neox_serve_gateway_tenant_calls", "Calls by tenant", ["tenant", "code"], registry=registry)
        self._tenant_tokens = Counter("neox_serve_gateway_tenant_tokens", "Tokens by tenant", ["tenant", "kind"], registry=registry)
        tenant_ttft = "Time from the arrival of a call to its first token, by tenant"
        self._tenant_ttft = self._latency("tenant_time_to_first_token", tenant_ttft, _TENANT_BUCKETS_S, labels=("tenant",))
        self._watch(dispatcher)

    def began(self, call: Call) -> None:
        """Counts a call that has arrived."""
        self._in_flight.labels(call.method).inc()

    def ended(self, call: Call, code: str, reason: str, now_s: float) -> None:
        """Counts a call that has ended, with its status code and the reason of its error ("" for success)."""
        method, tokens, progress = call.method, call.accounting.tokens, call.progress
        for gap_s in progress.gaps_s:
            self._gaps.observe(gap_s)
        self._in_flight.labels(method).dec()
        self._calls.labels(method, code, reason).inc()
        self._duration.labels(method).observe(now_s - call.deadline.arrived_at_s)
        tenant = self._label(call.tenant.name, tokens.used, now_s)
        self._tenant_calls.labels(tenant, code).inc()
        for kind, count in (("prompt", tokens.prompt), ("cached", tokens.cached), ("completion", tokens.completion)):
            self._tokens.labels(kind).inc(count)
            self._tenant_tokens.labels(tenant, kind).inc(count)
        for predicted, found in call.accounting.predictions:
            self._prefixes.labels("predicted").inc(predicted)
            self._prefixes.labels("missing").inc(max(0, predicted - found))
            self._prefixes.labels("unforeseen").inc(max(0, found - predicted))
        if progress.first_token_at_s is not None and progress.last_token_at_s is not None:
            ttft_s = progress.first_token_at_s - call.deadline.arrived_at_s
            self._ttft.labels(method).observe(ttft_s)
            self._tenant_ttft.labels(tenant).observe(ttft_s)
            if tokens.completion > 1:
                self._tpot.labels(method).observe((progress.last_token_at_s - progress.first_token_at_s) / (tokens.completion - 1))

    def _latency(
        self, name: str, description: str, buckets_s: tuple[float, ...] = _LATENCY_BUCKETS_S, labels: tuple[str, ...] = ("method",)
    ) -> Histogram:
        return Histogram(f"neox_serve_gateway_{name}_seconds", description, labels, buckets=buckets_s, registry=self._registry)

    def _label(self, tenant: str, tokens: int, now_s: float) -> str:
        """Returns the label value of a tenant, and adds the call to its recent use. A call without tokens counts as one."""
        standing = self._tenants.add(tenant, 1 + tokens, now_s)
        if standing.displaced is not None:
            for series in (self._tenant_calls, self._tenant_tokens, self._tenant_ttft):
                series.remove_by_labels({"tenant": standing.displaced})
        return tenant if standing.named else OTHER_TENANTS

    def text(self) -> str:
        """Returns the metrics in the Prometheus text format."""
        return generate_latest(self._registry).decode()

    def _watch(self, dispatcher: Dispatcher) -> None:
        router = Gauge("neox_serve_gateway_router_connected", "1 if the router answers, 0 otherwise", registry=self._registry)
        router.set_function(lambda: float(dispatcher.router_connected))
        ready = Gauge("neox_serve_gateway_ready_replicas", "Engine replicas that accept requests", ["pool"], registry=self._registry)
        for pool in Pool:
            ready.labels(pool.value).set_function(partial(_ready_replicas, dispatcher, pool))


def _ready_replicas(dispatcher: Dispatcher, pool: Pool) -> float:
    return float(dispatcher.ready_replicas(pool))
