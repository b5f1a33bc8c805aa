"""Bulk work as Ray jobs on a real cluster of fake engines: followed to its end, found again, stopped and resumed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs import Jobs, Submitted
from deployments.jobs.bulk import BulkJob
from deployments.jobs.row_files import partial_path
from tests.clusters import CommandCluster

# The second: Ray's own client, following a log.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")]


def write_rows(folder: Path, count: int, **options: Any) -> tuple[Path, Path]:
    """Input and output of a job."""
    rows = ({"prompt": f"row {number}", "ignore_eos": True, **options} for number in range(1, count + 1))
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "in.jsonl", folder / "out.jsonl"


def settled(output: Path) -> list[int]:
    """The rows that are settled, as they stand."""
    if not output.exists():
        return []
    return [json.loads(line)["row"] for line in output.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def command(cluster: CommandCluster, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs `neox-serve job ...` as a user of that cluster."""
    environment = os.environ | {
        "NEOX_SERVE_STATE_FOLDER": str(cluster.settings.state_folder),
        "NEOX_SERVE_GATEWAY__PORT": str(cluster.settings.gateway.port),
    }
    whole = [sys.executable, "-m", "cluster.cli", "job", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_job_submitted_and_followed_settles_every_row(cluster: CommandCluster, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path, 40, max_tokens=8)
    done = command(cluster, "submit", "generate", str(source), str(output), "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 of 40 rows" in done.stdout
    assert "Done: 40 rows" in done.stdout
    assert settled(output) == list(range(1, 41))
    assert all(len(json.loads(line)["completions"][0]["token_ids"]) == 8 for line in output.read_text().splitlines())

    again = command(cluster, "submit", "generate", str(source), str(output), "--wait")
    assert again.returncode == 0, again.stdout + again.stderr
    assert settled(output) == list(range(1, 41))

    job_id = done.stdout.partition(":")[0]
    assert job_id in command(cluster, "list").stdout
    assert "succeeded" in command(cluster, "status", job_id).stdout
    assert "Done: 40 rows" in command(cluster, "logs", job_id).stdout


def test_job_embeds_every_row(cluster: CommandCluster, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(1, 31)))
    done = command(cluster, "submit", "embed", str(source), str(output), "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert settled(output) == list(range(1, 31))
    vectors = [json.loads(line)["vector"] for line in output.read_text().splitlines()]
    assert len({len(vector) for vector in vectors}) == 1
    assert all(sum(value * value for value in vector) == pytest.approx(1, abs=1e-5) for vector in vectors)


def test_job_stopped_and_submitted_again_repeats_no_row(cluster: CommandCluster, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path, 24, max_tokens=60)
    jobs = Jobs.connect(cluster.dashboard_url)
    first = BulkJob("generate", source, output, cluster.address, f"generate-stopped-{tmp_path.name}", concurrency=3)
    run = jobs.submit(first)
    assert jobs.submit(first) == Submitted(run.id, already_running=True)
    wait_for_rows(output, 3)
    assert jobs.stop(run.id, timeout_s=30).status == "STOPPED"
    before = partial_path(output).read_bytes()
    assert 3 <= len(settled(partial_path(output))) < 24

    again = jobs.submit(BulkJob("generate", source, output, cluster.address, first.job_id, concurrency=24))
    log: list[str] = []
    assert jobs.follow(again.id, log.append).status == "SUCCEEDED", "".join(log)
    assert settled(output) == list(range(1, 25))
    after = {json.loads(line)["row"]: line for line in output.read_bytes().splitlines()}
    for line in before.splitlines():
        assert after[json.loads(line)["row"]] == line


def test_job_with_an_unusable_input_fails_and_says_why(cluster: CommandCluster, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": 1}\n')
    jobs = Jobs.connect(cluster.dashboard_url)
    job = BulkJob("generate", tmp_path / "in.jsonl", tmp_path / "out.jsonl", cluster.address, f"generate-unusable-{tmp_path.name}")
    run = jobs.submit(job)
    log: list[str] = []
    assert jobs.follow(run.id, log.append).status == "FAILED"
    assert "line 1: " in "".join(log)
    assert not (tmp_path / "out.jsonl").exists()


def wait_for_rows(output: Path, count: int) -> None:
    """Returns once that many rows are settled."""
    deadline_s = time.monotonic() + 60
    while len(settled(partial_path(output))) < count:
        assert time.monotonic() < deadline_s, "the job settles no rows"
        time.sleep(0.1)
