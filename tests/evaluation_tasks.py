"""Tasks of lm-evaluation-harness in local files, made from text of the standard library, in the formats of published tasks."""

import json
import random
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from neox_serve.model import model_files
from tests.python_lines import questions

TASKS = ("lines_kind", "lines_cloze", "lines_next", "lines_write", "lines_whole")
_QUESTIONS = 24
_BY_TRANSFORMERS = """
import json, sys
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, GPTNeoXForCausalLM
model, tasks, folder, output = sys.argv[1:]
loaded = GPTNeoXForCausalLM.from_pretrained(model, dtype=torch.float32)
lm = HFLM(pretrained=loaded, tokenizer=AutoTokenizer.from_pretrained(model), batch_size=8)
found = simple_evaluate(lm, tasks=tasks.split(","), task_manager=TaskManager("ERROR", include_path=folder))
json.dump({name: found[name] for name in ("results", "samples")}, open(output, "w"), default=str)
"""


def write_tasks(folder: Path) -> None:
    """Writes a folder for `--tasks-folder`."""
    asked = questions()
    kinds = sorted({one.answer for one in asked})
    rows = [{"line": one.line, "kind": kinds.index(one.answer)} for one in asked]
    # Few-shot classification.
    _write(
        folder,
        "lines_kind",
        rows,
        output_type="multiple_choice",
        fewshot_split="train",
        num_fewshot=3,
        doc_to_text="Line: {{line}}\nKind:",
        doc_to_target="kind",
        doc_to_choice=kinds,
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    passages = _passages()
    # A cloze, in LAMBADA's form.
    cloze = [{"before": " ".join(words[:-1]), "word": words[-1]} for words in (text.split() for text in passages)]
    _write(
        folder,
        "lines_cloze",
        cloze,
        output_type="loglikelihood",
        doc_to_text="{{before}}",
        doc_to_target="{{' ' + word}}",
        metric_list=[{"metric": "perplexity"}, {"metric": "acc"}],
    )
    # Multiple choice, in ARC's and PIQA's form.
    rng, halves = random.Random(1), [(text[: len(text) // 2], text[len(text) // 2 :]) for text in passages]
    choices = []
    for before, after in halves:
        options = [after, *(rng.choice(halves)[1] for _ in range(3))]
        rng.shuffle(options)
        choices.append({"before": before, "options": options, "label": options.index(after)})
    _write(
        folder,
        "lines_next",
        choices,
        output_type="multiple_choice",
        doc_to_text="{{before}}",
        doc_to_target="label",
        doc_to_choice="options",
        target_delimiter="",
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )
    _write(
        folder,
        "lines_write",
        [{"before": before, "after": after.split("\n")[0]} for before, after in halves],
        output_type="generate_until",
        doc_to_text="{{before}}",
        doc_to_target="{{after}}",
        generation_kwargs={"until": ["\n"], "do_sample": False, "max_gen_toks": 24},
        metric_list=[{"metric": "exact_match"}],
    )
    _write(
        folder,
        "lines_whole",
        [{"text": text} for text in passages],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )


def _passages() -> list[str]:
    """Returns paragraphs of docstrings."""
    text = "\n\n".join(
        file.read_text(encoding="utf-8", errors="replace") for file in sorted(Path(sysconfig.get_path("stdlib"), "json").glob("*.py"))
    )
    return [one.strip() for one in text.split("\n\n") if 80 < len(one) < 400][: 2 * _QUESTIONS]


def _write(folder: Path, task: str, rows: Iterable[Mapping[str, Any]], **values: Any) -> None:
    rows = list(rows)
    files = {"train": rows[_QUESTIONS : 2 * _QUESTIONS], "test": rows[:_QUESTIONS]}
    for split, some in files.items():
        (folder / f"{task}.{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some), encoding="utf-8")
    data = {split: str(folder / f"{task}.{split}.jsonl") for split in files}
    config = {"task": task, "dataset_path": "json", "dataset_kwargs": {"data_files": data}, "test_split": "test", **values}
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def by_transformers(folder: Path) -> Mapping[str, Any]:
    """Returns the harness's "results" and "samples" for the built-in model through transformers, for the tasks in a folder."""
    output = folder / "truth.json"
    arguments = [str(model_files.locate("builtin", None)), ",".join(TASKS), str(folder), str(output)]
    done = subprocess.run([sys.executable, "-c", _BY_TRANSFORMERS, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def responses(results: Mapping[str, Any], task: str) -> list[Any]:
    """Returns the model's answer to each question, in order."""
    return [sample["filtered_resps"] for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"])]


def likelihood_of(value: Any) -> tuple[float, bool]:
    """Parses a likelihood and whether it is greedy, as the harness writes them into samples."""
    likelihood, greedy = value
    return float(likelihood), str(greedy) == "True"
