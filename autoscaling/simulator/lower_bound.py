"""What no policy can do without: the GPU time of computing alone."""

from collections.abc import Iterable

from autoscaling.signals import PoolSpec
from autoscaling.simulator.engine import Request, Urgency


def min_gpu_hours(requests: Iterable[Request], spec: PoolSpec, begin_s: float, end_s: float) -> float:
    """GPU-hours that the requests of a span take of replicas that are never idle, start in no time, and are had in any fraction.

    Steps are as slow as targets allow, so that the fewest go to reading weights; of all requests those are left out that cost the most and
    that the promise spares. BULK is not counted.
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
