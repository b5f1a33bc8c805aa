"""Measures the fairness and overload goals on simulated replicas, with the router's own code. Each takes seconds."""

from functools import cache
from random import Random

from neox_serve.core.scheduling.fair_queue import QueueLimits
from neox_serve.core.tenancy.tenants import PriorityClass, Quotas
from tests.simulation.sharing import Cluster, Sent, Served, jain, percentile, poisson, work_by_tenant

_REPLICAS, _PLACES = 2, 16
_SPAN_S = 120.0
_QUOTA_PER_MINUTE = 24_000
_AT_ONCE = 12
_PATIENCE_S = 2.0
"""A response is useful to its client if its first token arrives within this time."""


def _lengths(rng: Random, prompt: int, output: int) -> tuple[int, int]:
    return rng.randint(prompt // 2, 2 * prompt), rng.randint(output // 2, 2 * output)


@cache
def jains_index() -> float:
    """Returns the fairness index of five backlogged tenants of equal weight whose request lengths differ by up to 16 times."""
    rng = Random(1)
    shapes = {"chat": (200, 100), "code": (800, 40), "long": (100, 400), "short": (50, 25), "search": (1600, 10)}
    traffic = [
        Sent(at_s, tenant, *_lengths(rng, *shape)) for tenant, shape in shapes.items() for at_s in poisson(rng, 4_000 / sum(shape), _SPAN_S)
    ]
    results = Cluster(_REPLICAS, _PLACES).run(traffic, until_s=_SPAN_S + 60)
    return jain(list(work_by_tenant(results, 20.0, _SPAN_S - 20).values()))


def _with_aggressor(times_quota: float) -> list[Served]:
    """Simulates a tenant within its quota beside one that sends `times_quota` times its own quota."""
    rng, quotas = Random(2), Quotas(tokens_per_minute=_QUOTA_PER_MINUTE, concurrent_requests=_AT_ONCE)
    compliant = [Sent(at_s, "compliant", *_lengths(rng, 200, 100), quotas=quotas) for at_s in poisson(rng, 1.0, _SPAN_S)]
    rate = times_quota * _QUOTA_PER_MINUTE / 60 / 375
    aggressor = [Sent(at_s, "aggressor", *_lengths(rng, 200, 100), quotas=quotas) for at_s in poisson(rng, rate, _SPAN_S)] if rate else []
    return Cluster(_REPLICAS, _PLACES).run([*compliant, *aggressor])


@cache
def compliant_p99_ttft_ratio() -> float:
    """Returns the p99 TTFT of a compliant tenant beside an aggressor at 10 times its quota, relative to that without the aggressor."""
    beside, alone = (
        percentile((one.ttft_s for one in _with_aggressor(times) if one.sent.tenant == "compliant"), 0.99) for times in (10.0, 0.0)
    )
    return beside / alone


@cache
def throughput_cost() -> float:
    """Returns the fraction of first-come-first-served throughput that fairness costs with four backlogged tenants."""
    rng = Random(3)
    traffic = [Sent(at_s, f"t{number}", *_lengths(rng, 200, 100)) for number in range(4) for at_s in poisson(rng, 20.0, _SPAN_S)]
    fair, first_come = (Cluster(_REPLICAS, _PLACES, fair=fair).run(traffic, until_s=_SPAN_S) for fair in (True, False))
    done = [sum(one.sent.output_tokens for one in results if one.ended_s is not None) for results in (fair, first_come)]
    return 1 - done[0] / done[1]


def _useful_per_s(load: float) -> tuple[float, int]:
    """Returns the useful responses per second at a multiple of the capacity, and the maximum queue depth."""
    rng, step_s = Random(4), 0.02 + 0.0005 * _PLACES
    capacity_per_s = _REPLICAS * _PLACES / (0.01 + 100 * 1.25 * step_s)
    classes = (PriorityClass.INTERACTIVE, PriorityClass.DEFAULT, PriorityClass.BULK)
    traffic = [
        Sent(at_s, f"t{rng.randrange(20)}", *_lengths(rng, 200, 100), priority=rng.choice(classes), time_left_s=_PATIENCE_S)
        for at_s in poisson(rng, load * capacity_per_s, _SPAN_S)
    ]
    cluster = Cluster(_REPLICAS, _PLACES, limits=QueueLimits(max_requests=200))
    results = cluster.run(traffic, until_s=_SPAN_S + 60)
    useful = sum(one.ttft_s <= _PATIENCE_S + 0.5 and one.ended_s is not None for one in results)
    return useful / _SPAN_S, cluster.deepest_queue


@cache
def goodput_at_4x() -> float:
    """Returns the useful responses per second at 4 times the capacity, relative to the maximum at any lower load."""
    peak = max(_useful_per_s(load)[0] for load in (0.5, 0.75, 0.9, 1.0, 1.25))
    return _useful_per_s(4.0)[0] / peak


@cache
def deepest_queue_at_4x() -> int:
    """Returns the maximum number of waiting requests; the limit is 200."""
    return _useful_per_s(4.0)[1]
