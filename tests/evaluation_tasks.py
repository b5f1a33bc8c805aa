"""Tasks of lm-evaluation-harness in local files, made of the standard library's text: the forms that published ones have."""

import json
import random
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.python_lines import questions

TASKS = ("lines_kind", "lines_cloze", "lines_next", "lines_write", "lines_whole")
_QUESTIONS = 24


def write_tasks(folder: Path) -> None:
    """A folder as `--tasks-folder` takes it."""
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
    """Docstrings' paragraphs."""
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
