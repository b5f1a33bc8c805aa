"""Configuration of a simulation: one pool and its behaviour."""

from dataclasses import dataclass

from autoscaling.signals import PoolSpec
from autoscaling.simulator.engine import EngineShape
from neox_serve.core.scheduling.fair_queue import QueueLimits


@dataclass(frozen=True, slots=True)
class SimulationConfig:
    """A simulated pool. Raises ValueError if a value is out of range."""

    spec: PoolSpec
    """Limits and targets, as the policy sees them."""
    shape: EngineShape
    """The engines of the pool."""
    startup_s: float
    """Mean time to start a replica, in seconds."""
    initial_replicas: int = 1
    """Number of replicas that are ready at the start."""
    startup_jitter_fraction: float = 0.1
    """Maximum deviation of a start-up time, as a fraction of `startup_s`."""
    drain_timeout_s: float = 120.0
    """Time after which a draining replica is stopped, in seconds. Its requests are then computed elsewhere."""
    metric_delay_s: float = 1.0
    """Age of the signals that the policy sees, in seconds."""
    interval_s: float = 1.0
    """Time between two calls of the policy, in seconds."""
    timeout_s: float = 120.0
    """Deadline of requests, in seconds after their arrival."""
    queue: QueueLimits = QueueLimits(max_requests=200_000, max_tokens=1 << 40, max_wait_s=60.0)  # noqa: RUF009 - frozen
    """Limits of the router's queue."""
    failures_per_gpu_hour: float = 0.0
    """Rate at which GPUs fail."""
    warmup_s: float = 0.0
    """Time in which a policy may learn its traffic, in seconds. The result leaves it out."""
    routing: str = "kv-aware"
    """Name of the routing policy."""
    seed: int = 0
    """Seed of all random numbers."""

    def __post_init__(self) -> None:
        for name in ("startup_s", "metric_delay_s", "initial_replicas", "failures_per_gpu_hour", "warmup_s"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} {value} is invalid; it must not be negative")
        if self.interval_s <= 0:
            raise ValueError(f"interval_s {self.interval_s} is invalid; it must be positive")
