"""A bulk run with a vLLM engine of its own and without a cluster."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from neox_serve.core.types import GenerationRequest, Sampling, Stopping
from neox_serve.engine.protocol import Engine
from neox_serve.model.model_files import locate
from neox_serve.model.tokenizer import Tokenizer
from tests.engines import SMALL
from tests.fakes.recording_sink import ask

pytestmark = pytest.mark.e2e


def run(folder: Path, kind: str, rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Returns the output rows of a run and what it printed."""
    config, source, output = (folder / name for name in ("engines.yaml", "in.jsonl", "out.jsonl"))
    config.write_text(json.dumps({"generation": {"engine": SMALL}, "embedding": {"engine": {**SMALL, "max_num_seqs": 4}}}))
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "deployments.jobs.bulk", kind, "--input", str(source), "--output", str(output), "--own-engine"]
    done = subprocess.run([*command, "--config", str(config)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in output.read_text().splitlines()], done.stderr


async def test_completions_agree_with_the_engine(tmp_path: Path, generation_engine: Engine) -> None:
    plain = [{"id": f"row {n}", "prompt": f"def f{n}(", "max_tokens": 40, "temperature": 0, "ignore_eos": True} for n in range(30)]
    special = [
        {"prompt": "import os", "max_tokens": 30, "temperature": 0, "stop": ["\n"], "ignore_eos": True},
        {"prompt": "x =", "max_tokens": 6, "n": 2, "logprobs": 2, "seed": 3},
        {"prompt": "version ", "max_tokens": 8, "regex": "[0-9]{4}"},
        {"prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": True},
        {"prompt": "a", "max_tokens": 4, "adapter": "none"},
    ]
    answers, said = run(tmp_path, "generate", plain + special)
    assert [answer["row"] for answer in answers] == list(range(1, 36))
    tokenizer = Tokenizer(locate("builtin", None))
    for row, answer in zip(plain[:3], answers, strict=False):
        asked = GenerationRequest("one", tokenizer.encode(str(row["prompt"])), Stopping(40, ignore_eos=True), Sampling(temperature=0.0))
        assert answer["completions"][0]["text"] == (await ask(generation_engine, asked)).text()
    stopped, several, structured, ids, refused = answers[30:]
    assert stopped["completions"][0]["finish"] == {"reason": "stop", "stop": "\n"}
    assert "\n" not in stopped["completions"][0]["text"]
    assert [len(one["logprobs"]) for one in several["completions"]] == [len(one["token_ids"]) for one in several["completions"]]
    assert re.fullmatch("[0-9]{4}", structured["completions"][0]["text"])
    assert len(ids["completions"][0]["token_ids"]) == 3
    assert refused["error"]["reason"] == "UNKNOWN_ADAPTER"
    assert "35 rows" in said
    assert "1 with an error" in said


def test_texts_are_embedded(tmp_path: Path) -> None:
    answers, _ = run(tmp_path, "embed", [{"text": f"number {n}"} for n in range(9)] + [{"text": "one", "pooling": "last"}])
    assert [len(answer["vector"]) for answer in answers] == [len(answers[0]["vector"])] * 10
    assert all(abs(sum(x * x for x in answer["vector"]) - 1) < 1e-3 for answer in answers)
