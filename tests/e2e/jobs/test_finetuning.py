"""Fine-tuning through BatchService on a cluster with real engines: the adapter is served once the job has succeeded."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from neox_serve.client import Client, JobState, ServeError
from neox_serve.core.errors import Reason
from neox_serve.model.chat import DEFAULT_TEMPLATE, render
from tests.clusters import CommandCluster, wait_until
from tests.python_lines import Question, questions, right_fraction

pytestmark = pytest.mark.e2e

_TRAINED = 640
_PAGE = (Path(__file__).parents[3] / "docs" / "jobs" / "finetuning.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return questions()


@pytest.fixture(scope="module")
def client(real_cluster: CommandCluster) -> Client:
    return Client(real_cluster.address)


@pytest.fixture(scope="module")
def adapter(real_cluster: CommandCluster, client: Client, asked: list[Question], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an adapter that a job trained."""
    source = tmp_path_factory.mktemp("examples") / "lines.jsonl"
    source.write_text("".join(f"{json.dumps(one.example)}\n" for one in asked[:_TRAINED]))
    job = client.create_finetune(
        str(source),
        "kinds",
        request_id="kinds",
        rank=4,
        targets=["query_key_value", "dense", "dense_h_to_4h"],
        epochs=5,
        learning_rate=5e-3,
        batch_tokens=2048,
    )
    last = list(client.watch_job(job.job_id, timeout_s=300))[-1]
    assert (last.state, last.kind, last.output) == (JobState.SUCCEEDED, "finetune", "kinds"), last
    assert last.completed_rows == last.total_rows == 5 * _TRAINED * 9 // 10
    assert real_cluster.settings.model.registry is not None
    wait_until(lambda: "kinds" in client.models()[0].adapters)
    return real_cluster.settings.model.registry / "kinds"


def test_trained_adapter_solves_a_task_that_the_model_fails(adapter: Path, client: Client, asked: list[Question]) -> None:
    tested = asked[_TRAINED:]
    texts = [render(DEFAULT_TEMPLATE, one.asked, end_of_text="<|endoftext|>") for one in tested]
    before = [client.generate(text, max_tokens=8, temperature=0).results[0].completions[0].text.split("\n")[0] for text in texts]
    replies = [client.generate([one.asked], adapter="kinds", max_tokens=8, temperature=0).results[0].completions[0] for one in tested]
    assert right_fraction(tested, before) < 0.1
    assert right_fraction(tested, [reply.text for reply in replies]) > 0.9
    assert {reply.finish.reason for reply in replies} == {"stop"}


def test_adapter_is_small_and_records_its_training(adapter: Path) -> None:
    card = json.loads((adapter / "training.json").read_text())
    assert card["parameters_fraction"] < 0.01
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "builtin"
    assert {file.name for file in adapter.iterdir()} >= {"adapter_model.safetensors", "chat_template.jinja", "loss.svg", "metrics.jsonl"}
    assert not any(one.name.startswith(".") for one in adapter.parent.iterdir())


def test_adapter_with_an_existing_name_is_refused(adapter: Path, client: Client) -> None:
    with pytest.raises(ServeError, match=r"finetune\.adapter: 'kinds' exists already") as refused:
        client.create_finetune("elsewhere.jsonl", "kinds")
    assert refused.value.reason is Reason.INVALID_ARGUMENT


def test_chat_without_a_template_is_refused(client: Client, asked: list[Question]) -> None:
    with pytest.raises(ServeError, match="a chat template; send the prompt as text"):
        client.generate([asked[0].asked])


def test_commands_of_the_fine_tuning_page_succeed(real_cluster: CommandCluster, tmp_path: Path) -> None:
    commands = re.findall(r"^    ((?:python|neox-serve) .+)$", _PAGE, flags=re.MULTILINE)
    assert len(commands) == 3
    (tmp_path / "docs").symlink_to(Path(__file__).parents[3] / "docs")
    for command in commands:
        done = subprocess.run(
            command, shell=True, check=False, capture_output=True, text=True, timeout=120, env=real_cluster.shell_environment, cwd=tmp_path
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert done.stdout.strip() == "class"
