"""Pools of GPT-NeoX-20B replicas to simulate."""

from dataclasses import dataclass
from pathlib import Path

from autoscaling.signals import Capacity, PoolSpec, Targets
from autoscaling.simulator.calibration import KV_TOKENS, step_time
from autoscaling.simulator.engine import EngineShape

_STEP_TOKENS = 512
"""Most of a step, as vLLM schedules where a long prompt must not hold up other sequences' tokens."""
_MAX_REQUESTS = 96


@dataclass(frozen=True, slots=True)
class Hardware:
    """Of a replica: GPU by name and tensor-parallel size. tables: folder of the calibration tables; absent: as they were fitted."""

    gpu: str = "a100-80"
    tensor_parallel_size: int = 2
    tables: Path | None = None

    def shape(self) -> EngineShape:
        """A simulated engine there. Raises ValueError naming what is not known."""
        step = step_time(self.tables, self.gpu, self.tensor_parallel_size)
        return EngineShape(step, KV_TOKENS[self.tensor_parallel_size], step_tokens=_STEP_TOKENS)

    def spec(self, min_replicas: int, max_replicas: int, startup_s: float, targets: Targets) -> PoolSpec:
        """A pool of such."""
        capacity = capacity_of(self.shape(), _MAX_REQUESTS)
        return PoolSpec(min_replicas, max_replicas, capacity, targets, startup_s, float(self.tensor_parallel_size))


def capacity_of(shape: EngineShape, max_requests: int) -> Capacity:
    """What a policy is told that such an engine bears. max_requests: that the router gives it at once."""
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
