"""Metrics by tenant name the largest ones, and drop the series of a tenant that is no longer among them."""

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from neox_serve.core.tenancy.tenant_directory import Principal
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.gateway.server.calls import Call, CallAccounting, CallIdentity, TokenCount
from neox_serve.gateway.server.deadlines import Deadline
from neox_serve.gateway.server.metrics import OTHER_TENANTS, GatewayMetrics
from tests.fakes.scripted_dispatcher import ScriptedDispatcher


def tokens_by_tenant(metrics: GatewayMetrics) -> dict[str, float]:
    """Returns prompt tokens by tenant, and checks that every metric names the same tenants."""
    families = {family.name: family for family in text_string_to_metric_families(metrics.text())}
    by_tenant = [family for name, family in families.items() if name.startswith("neox_serve_gateway_tenant_")]
    named = [{sample.labels["tenant"] for sample in family.samples} for family in by_tenant]
    assert len(named) >= 3
    assert all(names == named[0] for names in named)
    tokens = families["neox_serve_gateway_tenant_tokens"].samples
    return {
        sample.labels["tenant"]: sample.value for sample in tokens if sample.name.endswith("_total") and sample.labels["kind"] == "prompt"
    }


async def test_metrics_name_the_largest_tenants_and_counters_never_change_owner() -> None:
    metrics = GatewayMetrics(ScriptedDispatcher(), max_tenants=2)
    task = asyncio.current_task()
    assert task is not None

    def used(tenant: str, prompt: int) -> dict[str, float]:
        call = Call(
            CallIdentity("/m", "r", Principal(Tenant(tenant), "key", frozenset())),
            Deadline(0.0, 10.0),
            task,
            accounting=CallAccounting(tokens=TokenCount(prompt)),
        )
        call.progress.first_token_at_s = call.progress.last_token_at_s = 1.0
        metrics.began(call)
        metrics.ended(call, "OK", "", 2.0)
        return tokens_by_tenant(metrics)

    used("large", 1_000)
    assert used("small", 10) == {"large": 1_000, "small": 10}
    assert used("new", 8) == {"large": 1_000, "small": 10, OTHER_TENANTS: 8}
    assert used("new", 90) == {"large": 1_000, "new": 90, OTHER_TENANTS: 8}
    assert used("small", 5) == {"large": 1_000, "new": 90, OTHER_TENANTS: 13}
    assert used("small", 200) == {"large": 1_000, "small": 200, OTHER_TENANTS: 13}
