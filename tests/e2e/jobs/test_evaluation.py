"""Evaluation on a cluster with real engines agrees with lm-evaluation-harness and transformers."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deployments.jobs.access import Access
from deployments.jobs.evaluate.run import EvaluateRun
from neox_serve.client import Client, JobState
from neox_serve.core.jobs.evaluate import EvaluateWork
from tests.clusters import CommandCluster
from tests.evaluation_tasks import TASKS, by_transformers, likelihood_of, responses, write_tasks
from tests.run_arguments import arguments_of

pytestmark = pytest.mark.e2e

LIKELIHOOD = 1e-3


@pytest.fixture(scope="module")
def folder(real_cluster: CommandCluster) -> Path:
    made = real_cluster.settings.batch.tasks_folder
    assert made is not None
    write_tasks(made)
    return made


@pytest.fixture(scope="module")
def truth(folder: Path) -> Mapping[str, Any]:
    return by_transformers(folder)


@pytest.fixture(scope="module")
def job(real_cluster: CommandCluster, folder: Path) -> EvaluateRun:
    return EvaluateRun(EvaluateWork(TASKS, str(folder / "found.json")), Access(real_cluster.address), folder, folder / "cache")


def evaluated(job: EvaluateRun) -> tuple[Mapping[str, Any], str]:
    """Returns the results and the output of the process."""
    command = [sys.executable, "-m", "deployments.jobs.evaluate", *arguments_of(job)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(Path(job.work.output).read_text()), done.stderr


def test_scores_agree_with_transformers(job: EvaluateRun, truth: Mapping[str, Any]) -> None:
    found, said = evaluated(job)
    assert "|lines_kind" in said.replace(" ", "")
    assert responses(found, "lines_write") == responses(truth, "lines_write")
    for task in TASKS:
        assert len(responses(found, task)) == 24
        for name, value in truth["results"][task].items():
            if isinstance(value, float) and not name.startswith(("perplexity", "bits_per_byte")):
                assert found["results"][task][name] == value, (task, name)
    for task in ("lines_kind", "lines_cloze", "lines_next"):
        for ours, theirs in zip(responses(found, task), responses(truth, task), strict=True):
            assert len(ours) == len(theirs)
            for found_one, true_one in zip(map(likelihood_of, ours), map(likelihood_of, theirs), strict=True):
                assert found_one[0] == pytest.approx(true_one[0], abs=LIKELIHOOD)
                assert found_one[1] == true_one[1]
    for task, name in (("lines_cloze", "perplexity,none"), ("lines_whole", "bits_per_byte,none")):
        assert found["results"][task][name] == pytest.approx(truth["results"][task][name], rel=LIKELIHOOD)


def test_cached_answers_are_not_requested_again(job: EvaluateRun, truth: Mapping[str, Any]) -> None:
    first, _ = evaluated(job)
    again, said = evaluated(job)
    assert again["results"] == first["results"]
    assert "questions, 0.0 questions/s, 0 tok/s" in said
    assert truth["results"].keys() == again["results"].keys()


def test_submitted_evaluation_agrees_with_transformers(real_cluster: CommandCluster, truth: Mapping[str, Any], tmp_path: Path) -> None:
    command = "neox-serve job submit evaluate out.json lines_kind --limit 8 --wait"
    environment = real_cluster.shell_environment
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=180, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Client(real_cluster.address) as client:
        last = client.jobs(page_size=1).jobs[0]
    assert (last.state, last.kind, last.input) == (JobState.SUCCEEDED, "evaluate", "lines_kind"), last
    assert last.completed_rows == last.total_rows == 8 * 8
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["n-samples"]["lines_kind"]["effective"] == 8
    assert truth["results"]["lines_kind"].keys() == found["results"]["lines_kind"].keys()


def test_unknown_task_is_named(job: EvaluateRun) -> None:
    unknown = EvaluateRun(EvaluateWork(("lines_kindly",), job.work.output), job.access, job.tasks_folder)
    done = subprocess.run(
        [sys.executable, "-m", "deployments.jobs.evaluate", *arguments_of(unknown)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "there is no task 'lines_kindly'" in done.stderr) == (2, True), done.stderr
