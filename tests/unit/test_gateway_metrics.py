"""Names of tenants in metrics are bounded."""

from neox_serve.gateway.metrics import OTHER_TENANTS, BoundedTenants


def test_tenants_past_the_bound_share_a_name_for_good() -> None:
    names = BoundedTenants(most=2)
    assert [names.label(tenant) for tenant in ("a", "b", "c", "a", "d", "b")] == ["a", "b", OTHER_TENANTS, "a", OTHER_TENANTS, "b"]
