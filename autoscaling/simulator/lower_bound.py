"""A lower bound of the cost of any policy: the GPU time of the computation itself."""

from collections.abc import Iterable

from autoscaling.signals import PoolSpec
from autoscaling.simulator.engine import Request, Urgency


def min_gpu_hours(requests: Iterable[Request], spec: PoolSpec, begin_s: float, end_s: float) -> float:
    """Returns the GPU-hours that the requests between two times need on ideal replicas: never idle, started instantly, and divisible.

    Steps are as slow as the targets allow, so that reading the weights takes the smallest share. The most expensive requests are left out,
    as many as may miss the targets. BULK requests do not count. The result is infinite if the TPOT target cannot be met.
    """
    capacity, targets = spec.capacity, spec.targets
    share = 1 - capacity.fixed_s / targets.tpot_s
    if share <= 0:
        return float("inf")
    work_s = sorted(
        capacity.request_work_s(request.prompt_tokens, request.output_tokens)
        for request in requests
        if begin_s <= request.at_s <= end_s and request.urgency is not Urgency.BULK
    )
    kept = work_s[: round(targets.attainment_fraction * len(work_s))]
    return sum(kept) / share * spec.gpus_per_replica / 3600
