"""Fairness and overload in simulation: the figures that `make goals` prints, held as a test."""

from random import Random

from neox_serve.core.scheduling.fair_queue import PATIENCE_S
from neox_serve.core.tenancy.tenants import PriorityClass
from tests.simulation import fairness
from tests.simulation.sharing import Cluster, Sent, jain, poisson, work_by_tenant


def test_backlogged_tenants_get_equal_shares() -> None:
    assert fairness.jains_index() >= 0.98


def test_first_come_first_served_would_not_share_equally() -> None:
    """Checks that the index detects unfairness."""
    rng = Random(1)
    traffic = [Sent(at_s, name, 200, 100) for name, rate in (("many", 30.0), ("few", 6.0)) for at_s in poisson(rng, rate, 60.0)]
    shares = {fair: work_by_tenant(Cluster(2, 16, fair=fair).run(traffic, until_s=120.0), 10.0, 50.0) for fair in (True, False)}
    assert jain(list(shares[True].values())) > 0.97
    assert jain(list(shares[False].values())) < 0.85


def test_compliant_tenant_is_hardly_affected_by_an_aggressor() -> None:
    assert fairness.compliant_p99_ttft_ratio() <= 1.25


def test_fairness_costs_almost_no_throughput() -> None:
    assert fairness.throughput_cost() < 0.03


def test_load_of_four_times_the_capacity_keeps_goodput_and_bounds_the_queue() -> None:
    assert fairness.goodput_at_4x() >= 0.9
    assert fairness.deepest_queue_at_4x() <= 201


def test_bulk_is_served_although_higher_classes_never_stop() -> None:
    rng = Random(5)
    flood = [Sent(at_s, "user", 200, 100, priority=PriorityClass.INTERACTIVE) for at_s in poisson(rng, 40.0, 200.0)]
    bulk = [Sent(0.0, "bulk", 200, 100, priority=PriorityClass.BULK) for _ in range(5)]
    served = [one for one in Cluster(2, 16).run([*flood, *bulk], until_s=200.0) if one.sent.tenant == "bulk"]
    granted = sorted(one.granted_s for one in served if one.granted_s is not None)
    assert len(granted) == 5
    assert granted[-1] <= 5 * (PATIENCE_S[PriorityClass.BULK] + 1.0)
