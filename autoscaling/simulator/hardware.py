"""Hardware of simulated GPT-NeoX-20B replicas."""

from dataclasses import dataclass
from pathlib import Path

from autoscaling.signals import Capacity, PoolSpec, Targets
from autoscaling.simulator.calibration import KV_TOKENS, step_time
from autoscaling.simulator.engine import EngineShape

_STEP_TOKENS = 512
"""Maximum tokens in one step: vLLM's setting for deployments in which a long prompt must not delay the tokens of other sequences."""
_MAX_REQUESTS = 96


@dataclass(frozen=True, slots=True)
class Hardware:
    """The hardware of a replica."""

    gpu: str = "a100-80"
    """One of `calibration.GPUS`."""
    tensor_parallel_size: int = 2
    """Number of GPUs of a replica."""
    tables: Path | None = None
    """Folder with the calibration tables; None uses the stored fit."""

    def shape(self) -> EngineShape:
        """Returns the simulated engine. Raises ValueError if the GPU or the tensor-parallel size is unknown."""
        step = step_time(self.tables, self.gpu, self.tensor_parallel_size)
        return EngineShape(step, KV_TOKENS[self.tensor_parallel_size], step_tokens=_STEP_TOKENS)

    def spec(self, min_replicas: int, max_replicas: int, startup_s: float, targets: Targets) -> PoolSpec:
        """Returns the specification of a pool of such replicas."""
        capacity = capacity_of(self.shape(), _MAX_REQUESTS)
        return PoolSpec(min_replicas, max_replicas, capacity, targets, startup_s, float(self.tensor_parallel_size))


def capacity_of(shape: EngineShape, max_requests: int) -> Capacity:
    """Returns the capacity of an engine as a policy sees it. `max_requests` is the router's limit of concurrent requests per replica."""
    step = shape.step_time
    return Capacity(
        step.fixed_s,
        step.per_sequence_s,
        step.per_resident_token_s,
        step.prefill_per_token_s,
        shape.kv_tokens,
        max_requests,
        shape.step_tokens,
    )
