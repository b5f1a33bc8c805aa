"""Training with several workers of Ray Train."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deployments.jobs.finetune.run import FinetuneRun
from neox_serve.client import Client, JobState
from neox_serve.core.jobs.finetune import FinetuneWork
from tests.clusters import CommandCluster
from tests.python_lines import questions
from tests.run_arguments import arguments_of

pytestmark = pytest.mark.ray


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_training_with_two_workers_ends_with_the_weights_of_one(cluster: CommandCluster, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"{json.dumps(one.example)}\n" for one in questions()[:60]))
    choices: dict[str, Any] = {"rank": 2, "targets": ("query_key_value",), "epochs": 2, "learning_rate": 5e-3, "batch_tokens": 1024}
    alone = FinetuneRun(FinetuneWork(str(source), "one", **choices), tmp_path / "registry")
    done = subprocess.run(
        [sys.executable, "-m", "deployments.jobs.finetune", *arguments_of(alone)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    registry = cluster.settings.model.registry
    assert registry is not None
    with Client(cluster.address) as client:
        job = client.create_finetune(str(source), "two", request_id="two-workers", workers=2, **choices)
        last = list(client.watch_job(job.job_id, timeout_s=300))[-1]
        assert last.state is JobState.SUCCEEDED, last
    one, two = weights(alone.output), weights(registry / "two")
    assert one.keys() == two.keys()
    # Two workers add up gradients in another order. Adam turns that rounding noise into part of a step where a gradient is nearly zero, so
    # the weights are compared as a whole; wrong shares of the examples would change them by whole steps.
    difference = sum(float((one[name] - two[name]).square().sum()) for name in one) ** 0.5
    norm = sum(float(tensor.square().sum()) for tensor in one.values()) ** 0.5
    assert difference < 1e-3 * norm
