"""Data-parallel training with Ray Train: each process has the whole model and computes a share of every step."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed

from deployments.jobs.failures import JobError
from deployments.jobs.finetune.training import Share


def train_together(train: Callable[[Share], None], workers: int, *, folder: Path, ray_address: str) -> None:
    """Calls `train` in `workers` processes, each with its share.

    `folder` is for Ray Train's own files; `ray_address` is a Ray cluster, or "local" to start one. Raises JobError if a worker fails.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    def work(_config: object) -> None:
        context = ray.train.get_context()
        train(Share(context.get_world_rank(), context.get_world_size(), _add_up))

    ray.init(address=ray_address, log_to_driver=False, include_dashboard=False if ray_address == "local" else None)
    trainer = TorchTrainer(
        work,
        train_loop_config={},
        torch_config=TorchConfig(backend="nccl" if torch.cuda.is_available() else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(name="workers", storage_path=str(folder), failure_config=FailureConfig(max_failures=0)),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise JobError(f"a worker failed: {error}", 1) from error


def _add_up(tensors: Sequence[torch.Tensor]) -> None:
    for tensor in tensors:
        torch.distributed.all_reduce(tensor)
