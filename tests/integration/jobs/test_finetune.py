"""Fine-tuning runs on the built-in model, as processes that are killed and with damaged files."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import GPTNeoXForCausalLM

from deployments.jobs.failures import JobError
from deployments.jobs.finetune import checkpoint
from deployments.jobs.finetune.__main__ import run, survey
from deployments.jobs.finetune.examples import Reader
from deployments.jobs.finetune.packing import pack
from deployments.jobs.finetune.run import FinetuneRun
from deployments.jobs.finetune.training import summed_loss
from deployments.jobs.reports import read_report
from neox_serve.core.jobs.finetune import FinetuneWork
from neox_serve.model import model_files
from neox_serve.model.chat import DEFAULT_TEMPLATE
from neox_serve.model.tokenizer import Tokenizer
from tests.python_lines import questions
from tests.run_arguments import arguments_of

QUIET = Console(quiet=True)
CPU = torch.device("cpu")


@pytest.fixture
def job(tmp_path: Path) -> FinetuneRun:
    """A run with sixty examples and one sequence per step."""
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"{json.dumps(one.example)}\n" for one in questions()[:60]))
    work = FinetuneWork(str(source), "acme/lines", rank=2, targets=("query_key_value",), epochs=3, learning_rate=5e-3, batch_tokens=256)
    return FinetuneRun(work, tmp_path / "registry", report=tmp_path / "report.json")


def weights(job: FinetuneRun) -> dict[str, torch.Tensor]:
    return load_file(job.output / "adapter_model.safetensors")


def started(job: FinetuneRun) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deployments.jobs.finetune", *arguments_of(job)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def killed_further_on(job: FinetuneRun) -> None:
    """Starts the run and kills it once it has made progress."""
    before, process = reached(job), started(job)
    wait_for(lambda: process.poll() is not None or reached(job) > before)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def reached(job: FinetuneRun) -> int:
    """Returns the number of examples that the run has processed."""
    assert job.report is not None
    return read_report(job.report).progress.done


def history(job: FinetuneRun) -> list[dict[str, float]]:
    return [json.loads(line) for line in (job.output / "metrics.jsonl").read_text().splitlines()]


def test_packed_examples_have_the_same_loss_as_separate_ones() -> None:
    folder = model_files.locate("builtin", None)
    model, tokenizer = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32), Tokenizer(folder)
    reader = Reader(tokenizer.encode, DEFAULT_TEMPLATE, "<|endoftext|>", 2048)
    examples = [reader.example(one.example) for one in questions()[:12]]
    with torch.inference_mode():
        together = float(summed_loss(model, pack(examples, 1), CPU))
        alone = sum(float(summed_loss(model, pack([one], 1), CPU)) for one in examples)
    assert together == pytest.approx(alone, rel=1e-5)


def test_training_killed_and_resumed_ends_with_the_same_weights(job: FinetuneRun) -> None:
    job = replace(job, work=replace(job.work, epochs=14, early_stop_epochs=0))
    whole = replace(job, work=replace(job.work, adapter="acme/whole"), report=None)
    run(whole, QUIET)
    for _ in range(2):
        killed_further_on(job)
        assert not job.output.exists()
    run(job, QUIET)
    found = weights(job)
    assert found.keys() == weights(whole).keys()
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in found.items())
    assert history(job) == history(whole)
    assert not job.unfinished.exists()
    assert reached(job) == 14 * 54


def test_interrupted_training_prints_how_to_continue(job: FinetuneRun) -> None:
    process = started(job)
    wait_for(lambda: reached(job) > 0)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143
    assert f"Stopped; the same command continues from {job.unfinished}." in said
    assert not job.output.exists()


def test_training_without_improvement_stops_early_with_the_best_weights(job: FinetuneRun) -> None:
    wild = replace(job, work=replace(job.work, learning_rate=1.0, epochs=50, early_stop_epochs=2))
    run(wild, QUIET)
    losses = [line["evaluation_loss"] for line in history(wild) if "evaluation_loss" in line]
    assert len(losses) < 50
    assert min(losses) not in losses[-2:]
    assert json.loads((wild.output / "training.json").read_text())["best_evaluation_loss"] == min(losses)


def test_training_without_evaluation_keeps_the_last_weights(job: FinetuneRun) -> None:
    run(replace(job, work=replace(job.work, evaluation_fraction=0.0, epochs=1)), QUIET)
    assert all("evaluation_loss" not in line for line in history(job))


def test_damaged_checkpoint_is_named(job: FinetuneRun) -> None:
    job.unfinished.mkdir(parents=True)
    (job.unfinished / "checkpoint").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(JobError, match="checkpoint: the checkpoint is damaged"):
        run(job, QUIET)
    assert not job.output.exists()


def test_checkpoint_of_other_examples_is_refused(job: FinetuneRun) -> None:
    job.unfinished.mkdir(parents=True)
    parameter = torch.nn.Parameter(torch.zeros(1))
    checkpoint.save(job.unfinished / "checkpoint", "another", checkpoint.TrainingState(), {}, torch.optim.AdamW([parameter]))
    with pytest.raises(JobError, match="belongs to a training with other examples or options"):
        run(job, QUIET)


def test_existing_adapter_is_never_overwritten(job: FinetuneRun) -> None:
    job.output.mkdir(parents=True)
    with pytest.raises(JobError, match="exists, from a training with other examples or options"):
        survey(job)


def test_run_killed_after_publishing_is_finished_by_the_next_one(job: FinetuneRun) -> None:
    short = replace(job, work=replace(job.work, epochs=1))
    run(short, QUIET)
    before = (job.output / "adapter_model.safetensors").stat().st_mtime_ns
    short.unfinished.mkdir()
    run(short, QUIET)
    assert (job.output / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert not short.unfinished.exists()
    with pytest.raises(JobError, match="choose another adapter"):
        run(replace(short, work=replace(short.work, seed=1)), QUIET)


def test_bad_rows_stop_the_run_or_are_written_to_the_rejects_file(job: FinetuneRun, tmp_path: Path) -> None:
    with Path(job.work.input).open("a") as stream:
        stream.write('{"prompt": "a"}\n')
    with pytest.raises(JobError, match=r"1 bad and 60 good rows(.|\n)*line 61: completion: got None"):
        survey(job)
    aside = tmp_path / "bad.jsonl"
    found = survey(replace(job, work=replace(job.work, rejects=str(aside))))
    assert len(found.examples) == 60
    assert json.loads(aside.read_text())["row"] == 61


@pytest.mark.parametrize(
    ("change", "said"),
    [({"input": "/nowhere/in.jsonl"}, "/nowhere/in.jsonl: No such file"), ({"model": "/nowhere/model"}, "--model: '/nowhere/model' is")],
)
def test_missing_file_is_named(job: FinetuneRun, change: dict[str, str], said: str) -> None:
    work = replace(job.work, input=change.get("input", job.work.input))
    with pytest.raises(JobError, match=said):
        survey(replace(job, work=work, model=change.get("model", "builtin")))


def test_second_run_for_the_same_adapter_is_refused(job: FinetuneRun) -> None:
    process = started(job)
    wait_for(lambda: reached(job) > 0)
    with pytest.raises(JobError, match="another job is training this adapter"):
        run(replace(job, report=None), QUIET)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
