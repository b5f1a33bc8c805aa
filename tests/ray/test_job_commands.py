"""`neox-serve job` on a real cluster with fake engines, as users call it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import CommandCluster

pytestmark = pytest.mark.ray


def write_rows(folder: Path, count: int, **options: Any) -> tuple[Path, Path]:
    """Writes the input of a job; returns the paths of its input and output."""
    rows = ({"prompt": f"row {number}", "ignore_eos": True, **options} for number in range(1, count + 1))
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "in.jsonl", folder / "out.jsonl"


def rows_of(output: Path) -> list[int]:
    """Returns the row numbers of an output, in order."""
    return [json.loads(line)["row"] for line in output.read_text().splitlines()]


def command(cluster: CommandCluster, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs `neox-serve job ...` as a user of the cluster."""
    environment = os.environ | {
        "NEOX_SERVE_STATE_FOLDER": str(cluster.settings.state_folder),
        "NEOX_SERVE_GATEWAY__PORT": str(cluster.settings.gateway.port),
    }
    whole = [sys.executable, "-m", "cluster.cli", "job", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_submitted_job_completes_every_row(cluster: CommandCluster, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path, 40, max_tokens=8)
    done = command(cluster, "submit", "generate", str(source), str(output), "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded, 40 of 40 rows" in done.stderr
    assert f"done, 40 rows in {output}, 0 with an error" in done.stdout
    assert rows_of(output) == list(range(1, 41))
    assert all(len(json.loads(line)["completions"][0]["token_ids"]) == 8 for line in output.read_text().splitlines())

    before = output.read_bytes()
    again = command(cluster, "submit", "generate", str(source), str(output), "--wait")
    assert again.returncode == 0, again.stdout + again.stderr
    assert output.read_bytes() == before

    job_id = done.stdout.partition(":")[0]
    assert job_id in command(cluster, "list").stdout
    assert "succeeded" in command(cluster, "status", job_id).stdout
    assert "Done: 40 rows" in command(cluster, "logs", job_id).stdout
    assert "Done: 40 rows" in command(cluster, "logs", "--follow", job_id).stdout


def test_job_embeds_every_row(cluster: CommandCluster, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(1, 31)))
    done = command(cluster, "submit", "embed", str(source), str(output), "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows_of(output) == list(range(1, 31))
    vectors = [json.loads(line)["vector"] for line in output.read_text().splitlines()]
    assert len({len(vector) for vector in vectors}) == 1
    assert all(sum(value * value for value in vector) == pytest.approx(1, abs=1e-5) for vector in vectors)


def test_repeated_submission_finds_the_job_and_after_cancellation_creates_another(cluster: CommandCluster, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path, 400, max_tokens=100)
    first = command(cluster, "submit", "generate", str(source), str(output), "--concurrency", "2")
    assert first.returncode == 0, first.stdout + first.stderr
    job_id = first.stdout.partition(":")[0]
    assert command(cluster, "submit", "generate", str(source), str(output), "--concurrency", "2").stdout.startswith(f"{job_id}: ")
    assert "is being cancelled" in command(cluster, "cancel", job_id).stdout
    watched = command(cluster, "watch", job_id)
    assert watched.returncode == 1
    assert "cancelled" in watched.stderr
    assert not output.exists()
    anew = command(cluster, "submit", "generate", str(source), str(output), "--concurrency", "2")
    other_id = anew.stdout.partition(":")[0]
    assert other_id != job_id
    assert "is being cancelled" in command(cluster, "cancel", other_id).stdout


def test_unknown_job_is_reported(cluster: CommandCluster) -> None:
    done = command(cluster, "status", "job-nothing")
    assert done.returncode == 1
    assert "UNKNOWN_JOB: there is no job 'job-nothing'" in done.stderr


def test_quantization_shows_matrices_and_writes_a_checkpoint(cluster: CommandCluster, tmp_path: Path) -> None:
    calibration, held_out, output = (tmp_path / name for name in ("calibration.txt", "held_out.txt", "model"))
    calibration.write_text("def add(a, b):\n    return a + b\n" * 50)
    held_out.write_text("import os\n" * 50)
    files = [str(output), str(calibration), str(held_out)]
    done = command(cluster, "submit", "quantize", "w4a16", *files, "--sequences", "2", "--sequence-tokens", "64", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded, 24 of 24 matrices" in done.stderr
    assert json.loads((output / "config.json").read_text())["quantization_config"]["format"] == "pack-quantized"
    assert "times smaller" in command(cluster, "logs", done.stdout.partition(":")[0]).stdout
    taken = command(cluster, "submit", "quantize", "w8a8", *files, "--wait")
    assert taken.returncode == 1
    assert "was not made from this; choose another output" in taken.stderr


def test_job_with_an_own_engine_succeeds(cluster: CommandCluster, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path, 20, max_tokens=4)
    done = command(cluster, "submit", "generate", str(source), str(output), "--own-engine", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows_of(output) == list(range(1, 21))
