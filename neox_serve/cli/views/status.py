"""Tables of the cluster's state and of models."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from neox_serve.client.results import ClusterStatus, Model, ReplicaStatus, TenantStatus
from neox_serve.core.errors import ServeError

_STATE_STYLES = {"ready": "green", "draining": "yellow", "unhealthy": "red", "lost": "red"}


def status_view(status: ClusterStatus) -> RenderableType:
    """Conditions, pools, replicas and gateways."""
    conditions = [Text(f"{it.reason}: {it.message}", style="bold yellow") for it in status.conditions]
    headline = Text(f"neox-serve {status.version}", style="bold")
    return Group(headline, *conditions, _pools(status), _replicas(status.replicas), _gateways(status))


def top_view(status: ClusterStatus) -> RenderableType:
    """The current load: conditions, tenants, pools and replicas."""
    conditions = [Text(f"{it.reason}: {it.message}", style="bold yellow") for it in status.conditions]
    speed = sum(replica.output_tokens_per_second for replica in status.replicas)
    headline = Text(f"neox-serve {status.version}   {speed:,.0f} tok/s   Ctrl-C to stop", style="bold")
    return Group(headline, *conditions, _tenants(status.tenants), _pools(status), _replicas(status.replicas))


def missing_view(error: ServeError) -> RenderableType:
    """Shown in place of the state while no gateway answers."""
    return Text(f"Status unavailable: {error}", style="bold red")


def models_table(models: Iterable[Model]) -> Table:
    """One row per model."""
    table = _table("model", "source", "capabilities", "context", "vocabulary", "embedding", "ready")
    for model in models:
        facts = model.embedding
        embedding = f"{facts.dimensions}, {facts.default_pooling}, layer {facts.layer}" if facts else "-"
        names = "\n".join([model.name, *(f"+ {adapter}" for adapter in model.adapters)])
        source = f"{model.source}@{model.revision}" if model.revision else model.source
        ready = f"{model.ready_generation_replicas} generation, {model.ready_embedding_replicas} embedding"
        limits = (f"{model.limits.max_model_len:,}", f"{model.limits.vocabulary_size:,}")
        table.add_row(*map(escape, (names, source, ", ".join(sorted(model.capabilities)), *limits, embedding, ready)))
    return table


def age(seconds: float) -> str:
    """A duration in its two largest units, for example "1 h 5 min"."""
    total = int(seconds)
    for size, unit, smaller_size, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= size:
            return f"{total // size} {unit} {total % size // smaller_size} {smaller}"
    return f"{total} s"


def _pools(status: ClusterStatus) -> Table:
    scales = any(pool.wanted_replicas is not None for pool in status.pools)
    table = _table("pool", "ready", "in flight", "outstanding tokens", *(("draining", "wanted", "reason") if scales else ()))
    for pool in status.pools:
        needed = pool.wanted_replicas != 0
        ready = f"[{'green' if pool.ready_replicas else 'red' if needed else 'dim'}]{pool.ready_replicas}[/]"
        wanted = "fixed" if pool.wanted_replicas is None else f"{pool.wanted_replicas}"
        reason = Text(pool.scaling_reason, style="bold red" if pool.scaling_alarm else "")
        scaling = (f"{pool.draining_replicas}", wanted, reason) if scales else ()
        table.add_row(pool.pool, ready, f"{pool.requests_in_flight:,}", f"{pool.outstanding_tokens:,}", *scaling)
    return table


def _tenants(tenants: Iterable[TenantStatus]) -> Table:
    table = _table("tenant", "running", "running tokens", "waiting", "waiting tokens", "served")
    for it in tenants:
        counts = (it.running_requests, it.running_tokens, it.waiting_requests, it.waiting_tokens, int(it.served))
        table.add_row(escape(it.tenant), *(f"{count:,}" for count in counts))
    return table


def _replicas(replicas: Iterable[ReplicaStatus]) -> Table:
    table = _table("replica", "pool", "model", "state", "running", "waiting", "outstanding tokens", "KV usage", "tok/s", "age")
    for replica in sorted(replicas, key=lambda it: (it.pool, it.replica_id)):
        table.add_row(
            escape(replica.replica_id),
            replica.pool,
            escape(replica.model),
            Text(replica.state, style=_STATE_STYLES.get(replica.state, "")),
            f"{replica.running_requests:,}",
            f"{replica.waiting_requests:,}",
            f"{replica.outstanding_tokens:,}",
            f"{replica.kv_usage_fraction:.2f}",
            f"{replica.output_tokens_per_second:,.0f}",
            age(replica.age_s),
        )
    return table


def _gateways(status: ClusterStatus) -> Table:
    table = _table("gateway", "in flight", "age")
    for gateway in sorted(status.gateways, key=lambda it: it.gateway_id):
        name = escape(gateway.gateway_id) + (" [dim](this one)[/]" if gateway.gateway_id == status.gateway_id else "")
        table.add_row(name, f"{gateway.requests_in_flight:,}", age(gateway.age_s))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in others:
        table.add_column(column, justify="left" if column in {"pool", "model", "state", "source", "capabilities", "reason"} else "right")
    return table
