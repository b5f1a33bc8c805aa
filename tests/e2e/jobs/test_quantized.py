"""Quantized checkpoints, served by real vLLM engines on the CPU."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from deployments.jobs.quantize.__main__ import main
from neox_serve.core.jobs.quantize import REPORT_FILE
from neox_serve.core.types import GenerationRequest, Pool, Sampling, Stopping
from neox_serve.model import model_files
from neox_serve.model.memory import Quantization, weight_bytes
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.settings import restore
from tests.e2e.engine.vllm_weights import vllm_weight_bytes
from tests.e2e.reference import Reference
from tests.engines import SMALL, start
from tests.fakes.recording_sink import ask

pytestmark = pytest.mark.e2e

QUALITY = {"w8a8": 0.99, "w4a16": 0.95}
SMALLER = {"w8a8": 1.5, "w4a16": 1.9}
"""For this model, two fifths of whose weights are embeddings, which are not quantized."""


@dataclass(frozen=True)
class Made:
    """A quantized checkpoint, and text that was not used to make it."""

    scheme: str
    folder: Path
    held_out: str


@pytest.fixture(scope="module", params=sorted(QUALITY))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, library = tmp_path_factory.mktemp("quantised"), Path(sysconfig.get_path("stdlib"))
    calibration, held_out = folder / "calibration.txt", folder / "held_out.txt"
    calibration.write_text("".join((library / name).read_text() for name in ("argparse.py", "ast.py", "typing.py", "tarfile.py")))
    held_out.write_text((library / "shutil.py").read_text()[:16_000])
    files = ["--calibration", str(calibration), "--held-out", str(held_out), "--output", str(folder / "model")]
    command = [sys.executable, "-m", "deployments.jobs.quantize", "--scheme", request.param, *files, "--sequences", "16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "bits per byte before" in " ".join(done.stderr.split())
    return Made(request.param, folder / "model", held_out.read_text())


def test_report_shows_little_loss_of_quality(made: Made) -> None:
    report = json.loads((made.folder / REPORT_FILE).read_text())
    assert report["quality_fraction"] >= QUALITY[made.scheme]
    assert report["greedy_agreement_fraction"] >= 0.9
    size = sum(file.stat().st_size for file in made.folder.glob("*.safetensors"))
    assert report["weight_bytes_after"] == size
    assert report["weight_bytes_before"] / size > SMALLER[made.scheme]
    assert not any(one.name.startswith(".") for one in made.folder.parent.iterdir())


def test_memory_in_vllm_agrees_with_the_plan(made: Made) -> None:
    quantization = Quantization.INT8 if made.scheme == "w8a8" else Quantization.INT4
    assert vllm_weight_bytes((made.folder, "float32")) == [
        pytest.approx(weight_bytes(model_files.read_facts(made.folder), quantization, element_bytes=4), rel=1e-4)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_engine_serves_the_quantized_checkpoint(made: Made, dtype: str) -> None:
    """Which kernels serve a checkpoint depends on the type that the engine computes in."""
    tokenizer, reference = Tokenizer(made.folder), Reference.load(model_files.locate("builtin", None))
    ids = tokenizer.encode(made.held_out)[:1_000]
    engine = await start(
        Pool.GENERATION, restore({"model": {"source": str(made.folder)}, "generation": {"engine": {**SMALL, "dtype": dtype}}})
    )
    try:
        request = GenerationRequest("one", ids, Stopping(max_tokens=1, ignore_eos=True), Sampling(temperature=0.0), prompt_logprobs=0)
        answer = await ask(engine, request)
    finally:
        await engine.close()
    facts = [delta.prompt for delta in answer.deltas if delta.prompt is not None]
    told = [position.token for fact in facts for position in fact.logprobs]
    assert [token.token_id for token in told] == list(ids[1:])
    served = -sum(token.logprob for token in told)
    logprobs = reference.logprobs(ids)
    whole = -float(sum(logprobs[place - 1][ids[place]] for place in range(1, len(ids))))
    assert whole / served >= QUALITY[made.scheme]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--calibration": "/nowhere/text"}, "/nowhere/text: No such file"),
        ({"--model": "/nowhere/model"}, "--model: '/nowhere/model' is"),
        ({"--output": os.sep}, "/ exists, and was not made from this"),
        ({"--output": "s3://bucket/model"}, "it must be a folder, because engines read weights from a folder"),
        ({"--sequence-tokens": "2048"}, "a sequence needs 2048 (--sequence-tokens)"),
    ],
)
def test_unusable_argument_is_named(change: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_text("import os\n" * 300)
    given = {"--scheme": "w8a8", "--output": str(tmp_path / "out"), "--calibration": str(text), "--held-out": str(text)} | change
    assert main([part for pair in given.items() for part in pair]) == 2
    assert said in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "out").exists()


def test_killed_run_continues_and_makes_the_same_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibration, held_out = (tmp_path / name for name in ("calibration.txt", "held_out.txt"))
    calibration.write_text("def add(a, b):\n    return a + b\n" * 200)
    held_out.write_text("import os\n" * 50)
    files = ["--calibration", str(calibration), "--held-out", str(held_out), "--sequences", "2", "--sequence-tokens", "128"]

    def arguments(name: str) -> list[str]:
        return ["--scheme", "w4a16", "--output", str(tmp_path / name), *files]

    growing = tmp_path / ".killed.partial" / "checkpoint"
    killed = [sys.executable, "-m", "deployments.jobs.quantize", *arguments("killed")]
    with subprocess.Popen(killed, stderr=subprocess.DEVNULL) as process:
        until_s = time.monotonic() + 100
        while len(layers := sorted(growing.glob("*.safetensors"))) < 2:
            assert process.poll() is None, "the second layer is done before all are"
            assert time.monotonic() < until_s
            time.sleep(0.02)
        process.kill()
    before = {layer.name: layer.stat().st_mtime_ns for layer in layers[:2]}
    layers[1].write_bytes(layers[1].read_bytes()[:100])  # torn: it is made again
    for name in ("killed", "whole"):
        assert main(arguments(name)) == 0
    resumed, whole = ({file.name: file for file in (tmp_path / name).glob("*.safetensors")} for name in ("killed", "whole"))
    assert {name: file.read_bytes() for name, file in resumed.items()} == {name: file.read_bytes() for name, file in whole.items()}
    assert resumed[layers[0].name].stat().st_mtime_ns == before[layers[0].name], "the first layer is that from before"
    assert not (tmp_path / ".killed.partial").exists()
    assert main(arguments("whole")) == 0, "what is done is done"
    calibration.write_text("another text\n" * 200)
    assert main(arguments("whole")) == 2
    assert "was not made from this" in capsys.readouterr().err.replace("\n", "")


def test_damaged_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = tmp_path / "model", tmp_path / "text"
    shutil.copytree(model_files.locate("builtin", None), model)
    text.write_text("import os\n" * 100)
    weights = next(model.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1_000])
    files = ["--calibration", str(text), "--held-out", str(text), "--sequence-tokens", "64"]
    assert main(["--scheme", "w8a8", "--model", str(model), "--output", str(tmp_path / "out"), *files]) == 2
    assert f"{weights} is damaged" in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "out").exists()


def test_commands_of_the_quantization_page_succeed(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "jobs" / "quantizing.md").read_text(encoding="utf-8")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = re.findall(r"^    (python .+)$", page, flags=re.MULTILINE)
    assert len(commands) == 2
    (tmp_path / "docs").symlink_to(Path(__file__).parents[3] / "docs")
    for command in commands:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=200, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "neox-4bit" / REPORT_FILE).read_text())
    assert report["generated_agreement_fraction"] >= 0.5
    assert min(report["tokens_per_s_before"], report["tokens_per_s_after"]) > 0
