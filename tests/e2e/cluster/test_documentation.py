"""Every command of the README and of the documentation works: it runs here against a cluster, or a test named here runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deployments.jobs.bulk.vector_stores import open_store
from neox_serve.client import Client
from neox_serve.core.jobs.vector_target import VectorTarget
from tests.clusters import CommandCluster

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(set(DOCS.rglob("*.md")) - set((DOCS / "reference").glob("*.md")))]
BLOCK_COMMAND = re.compile(r"^    ((?:[A-Z_]+=\S+ )*(?:make|neox-serve|python|\.venv/bin/python|cp|printf) .+)$", flags=re.MULTILINE)
INLINE_COMMAND = re.compile(r"`(make [a-z-]+|neox-serve [^`]+)`")
PYTHON = re.compile(r"```python\n(from neox_serve.client import Client\n.*?)```", flags=re.DOTALL)

CALL = re.compile(
    r"neox-serve (generate|embed|score|classify|tokenize|status|models|estimate|metrics|bench --streams 16|config (show|check)$)"
)
"""Commands that any cluster answers at any time."""

IN_ORDER = ("operator/tenants.md", "jobs/batch.md", "tutorials/search.md")
"""Pages whose commands build on each other. All of them run, in the page's order, in one folder."""

TESTED_ELSEWHERE = {
    r"make serve|neox-serve up": "tests/clusters.py starts clusters with `neox-serve up`",
    r"NEOX_SERVE_\S+ (NEOX_SERVE_\S+ )?neox-serve up": "the same command with settings from the environment; tests/unit/settings",
    r"neox-serve up --config deployments/config/neox-20b.yaml": "needs GPUs; tests/unit/settings/test_config_files.py checks the file",
    r"neox-serve manifests render.*": "tests/unit/cluster/kubernetes",
    r"make (test|unit|check|format|help|setup|docs|docs-serve|reference|protos|test-changed|hooks|breaking)": "tests/unit/repository",
    r"make (bench|bench-smoke|goals|goals-long)|neox-serve bench.*|python -m tests.bench.*": "measures; tests/unit/bench",
    r"neox-serve (plan|simulate).*": "tests/unit/cluster/commands",
    r"neox-serve (apply|drain).*": "tests/ray/test_cluster_faults.py",
    r"neox-serve down": "tests/ray/test_cluster_stop.py",
    r"neox-serve (top|logs|metrics)": "tests/integration/cluster",
    r"neox-serve config (show|check).*": "tests/unit/settings and tests/e2e/engine/test_arguments.py",
    r"neox-serve usage (show|verify)": "the page on tenants",
    r"neox-serve job (watch|status|cancel|logs) ID": "tests/ray/test_job_commands.py",
    r"neox-serve job submit (generate prompts.jsonl out.jsonl|quantize .*) --wait": "tests/ray/test_job_commands.py",
    r"python docs/examples/jobs/lines.py > lines.jsonl|neox-serve job submit finetune .*|neox-serve generate .*--adapter lines.*": (
        "tests/e2e/jobs/test_finetuning.py"
    ),
    r"neox-serve job submit evaluate \S+ (piqa|lambada_openai) .*": "needs the hub; tests/e2e/jobs/test_evaluation.py",
    r"python docs/examples/tasks/python_lines.py tasks|neox-serve job submit evaluate scores.json python_lines .*": (
        "test_example_task_of_the_page_on_evaluation_is_scored"
    ),
    r"python docs/examples/jobs/texts.py|python -m deployments.jobs.quantize .*": "tests/e2e/jobs/test_quantized.py",
    r"neox-serve (estimate|job submit|tenant (set|usage TENANT|keys))": "the pages on tenants and on batch jobs, with arguments",
    r"neox-serve COMMAND --help": "tests/unit/repository/test_reference.py reads every command's help",
    r"\.venv/bin/python -m pytest .*": "examples of test paths; tests/unit/repository/test_documentation.py checks that they exist",
}


def commands_of(page: Path) -> list[str]:
    """Commands in the page's blocks, in their order, and in its sentences."""
    text = page.read_text(encoding="utf-8")
    return [*BLOCK_COMMAND.findall(text), *INLINE_COMMAND.findall(text)]


def blocks_of(name: str) -> list[str]:
    """Commands in the blocks of a page of the site, without those that start a cluster."""
    return [command for command in BLOCK_COMMAND.findall((DOCS / name).read_text(encoding="utf-8")) if "neox-serve up" not in command]


def run(command: str, cluster: CommandCluster, folder: Path) -> str:
    """Runs a command as a user types it, in a folder that also has the repository's docs. Returns what it prints."""
    if not (folder / "docs").exists():
        (folder / "docs").symlink_to(DOCS)
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=150, env=cluster.shell_environment, cwd=folder, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def is_tested_elsewhere(command: str) -> bool:
    return any(re.fullmatch(pattern, command) for pattern in TESTED_ELSEWHERE)


CALLS = sorted({command for page in PAGES for command in BLOCK_COMMAND.findall(page.read_text()) if CALL.match(command)})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_every_command_is_run_somewhere(page: Path) -> None:
    in_order = {command for name in IN_ORDER for command in blocks_of(name)}
    unknown = {command for command in commands_of(page) if not is_tested_elsewhere(command)} - set(CALLS) - in_order
    assert not unknown


@pytest.mark.parametrize("command", [command for command in CALLS if not is_tested_elsewhere(command) or "config" in command])
def test_call_of_any_page_succeeds_and_prints(command: str, real_cluster: CommandCluster, tmp_path: Path) -> None:
    assert run(command, real_cluster, tmp_path) != ""


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_python_of_the_page_runs(page: str, real_cluster: CommandCluster) -> None:
    (code,) = PYTHON.findall((ROOT / page).read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-c", code.replace("127.0.0.1:50051", real_cluster.address)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "StreamFinal" in done.stdout


def test_commands_of_the_page_on_tenants_work_in_their_order(real_cluster: CommandCluster, tmp_path: Path) -> None:
    commands = [command for command in blocks_of("operator/tenants.md") if command != "neox-serve top"]
    assert len(commands) > 8
    for command in commands:
        assert run(command, real_cluster, tmp_path) != ""


def test_commands_of_the_page_on_batch_jobs_work_in_their_order(real_cluster: CommandCluster, tmp_path: Path) -> None:
    for command in blocks_of("jobs/batch.md"):
        printed = run(command, real_cluster, tmp_path)
        if "search" in command:
            assert len(printed.splitlines()) == 5
            assert "  statistics." in printed
    assert_search_finds_what_brute_force_finds(tmp_path, real_cluster.address)
    assert [len(vector) for vector in pq.read_table(tmp_path / "vectors.parquet")["vector"].to_pylist()] == [256, 256]
    assert all(pq.read_table(tmp_path / "answers.parquet")["text"].to_pylist())


def test_program_of_the_page_on_batch_jobs_creates_and_watches_a_job(real_cluster: CommandCluster) -> None:
    folder = real_cluster.settings.state_folder / "batch" / "anonymous" / "june"
    folder.mkdir(parents=True)
    (folder / "prompts.jsonl").write_text('{"prompt": "import"}\n')
    (code,) = PYTHON.findall((DOCS / "jobs" / "batch.md").read_text(encoding="utf-8"))
    command = [sys.executable, "-c", code.replace("127.0.0.1:50051", real_cluster.address)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "SUCCEEDED 1 1" in done.stdout, done.stderr
    assert pq.read_table(folder / "answers.parquet").num_rows == 1


def test_commands_of_the_tutorial_on_search_work_in_their_order(real_cluster: CommandCluster, tmp_path: Path) -> None:
    printed = [run(command, real_cluster, tmp_path) for command in blocks_of("tutorials/search.md")]
    assert "statistics." in printed[-1]


def test_example_task_of_the_page_on_evaluation_is_scored(real_cluster: CommandCluster, tmp_path: Path) -> None:
    tasks = real_cluster.settings.batch.tasks_folder
    write, submit = (command for command in blocks_of("tutorials/adapter.md") if "python_lines" in command)
    run(write.removesuffix("tasks") + str(tasks), real_cluster, tmp_path)
    run(submit, real_cluster, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert 0 <= scores["results"]["python_lines"]["acc,none"] <= 1


def assert_search_finds_what_brute_force_finds(folder: Path, address: str) -> None:
    """Searches for functions of the page's file by their own texts. The index must find what comparing all vectors finds."""
    rows = [json.loads(line) for line in (folder / "functions.jsonl").read_text().splitlines()]
    vectors = np.array(pq.read_table(folder / "functions.parquet")["vector"].to_pylist(), dtype=np.float32)
    with open_store(VectorTarget("milvus", str(folder / "functions.db"), "functions")) as store, Client(address) as client:
        queries = client.embed([row["text"] for row in rows[:40]]).vectors
        hits = 0
        for vector in queries:
            expected = {rows[index]["id"] for index in np.argsort(-(vectors @ vector))[:5]}
            hits += len(expected & {found.id for found in store.search(vector.tolist(), 5)})
    assert hits / (5 * len(queries)) >= 0.95
