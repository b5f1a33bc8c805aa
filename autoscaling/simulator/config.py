"""What is simulated: one pool, and how it behaves."""

from dataclasses import dataclass

from autoscaling.signals import PoolSpec
from autoscaling.simulator.engine import EngineShape
from neox_serve.core.scheduling.fair_queue import QueueLimits


@dataclass(frozen=True, slots=True)
class Setting:
    """A simulated pool. initial_replicas are ready at the start.

    startup_s: of a replica, give or take startup_jitter_fraction. metric_delay_s: how old signals are. interval_s: between two questions to
    the policy. timeout_s: how long clients wait for an answer to begin and end. failures_per_gpu_hour: rate at which GPUs die. warmup_s:
    until when a policy may get to know its traffic; what happens before is not in the outcome.
    """

    spec: PoolSpec
    shape: EngineShape
    startup_s: float
    initial_replicas: int = 1
    startup_jitter_fraction: float = 0.1
    drain_timeout_s: float = 120.0
    metric_delay_s: float = 1.0
    interval_s: float = 1.0
    timeout_s: float = 120.0
    queue: QueueLimits = QueueLimits(max_requests=200_000, max_tokens=1 << 40, longest_wait_s=60.0)  # noqa: RUF009 - frozen
    failures_per_gpu_hour: float = 0.0
    warmup_s: float = 0.0
    routing: str = "kv-aware"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("startup_s", "metric_delay_s", "initial_replicas", "failures_per_gpu_hour", "warmup_s"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} {value}: must not be negative")
        if self.interval_s <= 0:
            raise ValueError(f"interval_s {self.interval_s}: must be positive")
