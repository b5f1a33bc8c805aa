"""A job with its own engine runs it with the cluster's engine settings, also after they have changed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neox_serve.client import Client
from tests.clusters import ROUTER, CommandCluster
from tests.ray.conftest import fake_engine

pytestmark = pytest.mark.ray


def submit_with_own_engine(cluster: CommandCluster, folder: Path, prompt: str, max_tokens: int) -> list[dict[str, Any]]:
    """Runs a job of one row and returns its output rows."""
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text(json.dumps({"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}) + "\n")
    command = [sys.executable, "-m", "cluster.cli", "job", "submit", "generate", str(source), str(output), "--own-engine", "--wait"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=cluster.shell_environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_own_engine_of_a_job_has_the_clusters_settings(cluster: CommandCluster, tmp_path: Path) -> None:
    """The cluster's engines are fake. So is the job's, because it generates the same tokens."""
    (row,) = submit_with_own_engine(cluster, tmp_path, "the same prompt", 4)
    with Client(cluster.address) as client:
        result = client.generate("the same prompt", max_tokens=4, ignore_eos=True)
    assert tuple(row["completions"][0]["token_ids"]) == tuple(result.results[0].completions[0].token_ids)


def test_own_engine_of_a_job_has_changed_settings_without_a_restart_of_the_router(cluster: CommandCluster, tmp_path: Path) -> None:
    """A context of 8 tokens is too short for the request."""
    router = {process.pid for process in cluster.processes(ROUTER)}
    changed = {**cluster.values["generation"], "engine": {**fake_engine(), "max_model_len": 8}}
    cluster.roll({**cluster.values, "generation": changed})
    try:
        (row,) = submit_with_own_engine(cluster, tmp_path, "the same prompt", 100)
        assert "error" in row, row
        assert {process.pid for process in cluster.processes(ROUTER)} == router
    finally:
        cluster.roll(cluster.values)
