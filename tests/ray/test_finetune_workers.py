"""Several workers that train together, by Ray Train."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deployments.jobs.finetune.arguments import FinetuneJob, arguments_of
from neox_serve.core.finetuning import FinetuneWork
from tests.python_lines import questions

pytestmark = pytest.mark.ray


def trained(job: FinetuneJob) -> dict[str, torch.Tensor]:
    done = subprocess.run(
        [sys.executable, "-m", "deployments.jobs.finetune", *arguments_of(job)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return load_file(job.output / "adapter_model.safetensors")


def test_two_workers_end_with_the_weights_of_one(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"{json.dumps(one.example)}\n" for one in questions()[:60]))
    work = FinetuneWork(str(source), "one", rank=2, targets=("query_key_value",), epochs=2, learning_rate=5e-3, batch_tokens=1024)
    job = FinetuneJob(work, "builtin", tmp_path / "registry")
    one, two = trained(job), trained(replace(job, work=replace(work, adapter="two", workers=2)))
    assert one.keys() == two.keys()
    largest = max(float(tensor.abs().max()) for tensor in one.values())
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-3 * largest
