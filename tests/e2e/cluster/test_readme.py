"""Every command of the README does what it says: those that call the cluster run here against one, the others have their own tests."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from deployments.jobs.bulk.vector_stores import opened
from neox_serve.client import Client
from neox_serve.core.jobs.vector_target import VectorTarget
from tests.clusters import CommandCluster

pytestmark = pytest.mark.e2e

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
BLOCK_COMMANDS = re.findall(r"^    (make \S+|neox-serve .+)$", README, flags=re.MULTILINE)
INLINE_COMMANDS = re.findall(r"`(make [a-z-]+|neox-serve [^`]+)`", README)
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)

CALLS = [
    command
    for command in BLOCK_COMMANDS
    if "--adapter" not in command and re.match(r"neox-serve (generate|embed|score|classify|tokenize|status|bench --)", command)
]
TENANTS = (Path(__file__).parents[3] / "docs" / "operator" / "tenants.md").read_text(encoding="utf-8")
BATCH = (Path(__file__).parents[3] / "docs" / "jobs" / "batch.md").read_text(encoding="utf-8")
TENANT_COMMANDS = re.findall(r"^    (neox-serve .+)$", TENANTS, flags=re.MULTILINE)
TESTED_ELSEWHERE = {
    "neox-serve tenant add acme --tokens-per-minute 100000": "test_commands_of_the_page_on_tenants_work_in_their_order",
    "neox-serve top": "tests/integration/cluster/test_cli.py",
    "make serve": "tests/clusters.py starts what it starts: `neox-serve up`",
    "make test": "this run",
    "make help": "test_make_help_lists_every_target_of_the_readme",
    "make check": "part of `make test`",
    "make bench": "not a test: it measures",
    "make goals": "not a test: it measures",
    "make goals-long": "not a test: it measures",
    "neox-serve plan": "tests/unit/cluster/planning/test_plan.py, with options",
    "neox-serve simulate": "tests/unit/cluster/commands/test_simulate.py, with options",
    "make protos": "tests/unit/repository/test_generated_protos.py",
    "make lock": "needs the registries",
    "neox-serve job submit generate prompts.jsonl out.jsonl --wait": "tests/ray/test_job_commands.py",
    "neox-serve job submit embed texts.jsonl vectors.parquet --into milvus:vectors.db#texts --wait": "the page on batch jobs",
    'neox-serve search milvus:vectors.db#texts "lists a folder"': "the page on batch jobs",
    'neox-serve generate "What is this line of Python? class Shelf(dict):" --chat --adapter lines': "the page on fine-tuning",
    "neox-serve job submit finetune lines.jsonl lines --wait": "tests/e2e/jobs/test_finetuning.py, the page on fine-tuning",
    "neox-serve job submit evaluate scores.json piqa sciq --shots 0 --wait": "needs the hub; tests/e2e/jobs/test_evaluation.py",
    "neox-serve job submit quantize w4a16 neox-4bit calibration.txt held_out.txt --wait": "tests/ray/test_job_commands.py, with options",
    "neox-serve up --config deployments/config/neox-20b.yaml": "needs GPUs; tests/unit/settings/test_config_files.py checks the file",
    "neox-serve bench": "the same command with options",
    "neox-serve config show": "tests/unit",
    "neox-serve config check --config FILE": "tests/e2e/engine/test_arguments.py",
    "neox-serve manifests render --config FILE": "tests/unit",
    "neox-serve apply --config FILE": "tests/ray/test_cluster_faults.py",
    "neox-serve down": "tests/ray/test_cluster_stop.py",
}


def test_readme_every_command_is_run_somewhere() -> None:
    unknown = {*BLOCK_COMMANDS, *INLINE_COMMANDS} - set(CALLS) - TESTED_ELSEWHERE.keys()
    assert not unknown


@pytest.mark.parametrize("command", CALLS)
def test_readme_call_succeeds_and_prints(command: str, real_cluster: CommandCluster) -> None:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, env=real_cluster.shell_environment, check=False)
    assert (done.returncode, done.stdout != "") == (0, True), done.stderr


@pytest.mark.parametrize("code", PYTHON)
def test_readme_python_runs(code: str, real_cluster: CommandCluster) -> None:
    code = code.replace("127.0.0.1:50051", real_cluster.address)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "StreamFinal" in done.stdout


def test_commands_of_the_page_on_tenants_work_in_their_order(real_cluster: CommandCluster) -> None:
    environment = real_cluster.shell_environment
    assert len(TENANT_COMMANDS) > 8
    for command in TENANT_COMMANDS:
        if command not in TESTED_ELSEWHERE:
            done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, env=environment, check=False)
            assert (done.returncode, done.stdout != "") == (0, True), f"{command}: {done.stderr}"


def test_commands_of_the_page_on_batch_jobs_work_in_their_order(real_cluster: CommandCluster, tmp_path: Path) -> None:
    commands = re.findall(r"^    ((?:printf|python|neox-serve) .+)$", BATCH, flags=re.MULTILINE)
    assert len(commands) == 9
    for command in commands:
        run: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, "env": real_cluster.shell_environment, "cwd": tmp_path}
        done = subprocess.run(command, shell=True, check=False, **run)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert len(done.stdout.splitlines()) == 5
    assert "  statistics." in done.stdout
    assert_search_finds_what_brute_force_finds(tmp_path, real_cluster.address)
    assert [len(vector) for vector in pq.read_table(tmp_path / "vectors.parquet")["vector"].to_pylist()] == [256, 256]
    assert all(pq.read_table(tmp_path / "answers.parquet")["text"].to_pylist())

    folder = real_cluster.settings.state_folder / "batch" / "anonymous" / "june"
    folder.mkdir(parents=True)
    (folder / "prompts.jsonl").write_text('{"prompt": "import"}\n')
    (code,) = re.findall(r"```python\n(.*?)```", BATCH, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code.replace("127.0.0.1:50051", real_cluster.address)], check=False, **run)
    assert "SUCCEEDED 1 1" in done.stdout, done.stderr
    assert pq.read_table(folder / "answers.parquet").num_rows == 1


def assert_search_finds_what_brute_force_finds(folder: Path, address: str) -> None:
    """For every function of the page's file, by its own text."""
    rows = [json.loads(line) for line in (folder / "functions.jsonl").read_text().splitlines()]
    vectors = np.array(pq.read_table(folder / "functions.parquet")["vector"].to_pylist(), dtype=np.float32)
    with opened(VectorTarget("milvus", str(folder / "functions.db"), "functions")) as store, Client(address) as client:
        asked = client.embed([row["text"] for row in rows[:40]]).vectors
        hits = 0
        for vector in asked:
            wanted = {rows[place]["id"] for place in np.argsort(-(vectors @ vector))[:5]}
            hits += len(wanted & {found.id for found in store.search(vector.tolist(), 5)})
    assert hits / (5 * len(asked)) >= 0.95


def test_make_help_lists_every_target_of_the_readme() -> None:
    listed = subprocess.run(["make", "help"], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True).stdout
    targets = {command.split()[1] for command in [*BLOCK_COMMANDS, *INLINE_COMMANDS] if command.startswith("make ")}
    assert targets - {"help"} <= {line.split()[0] for line in listed.splitlines()}
