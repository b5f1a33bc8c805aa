"""The checks of every kind of work."""

from dataclasses import replace
from typing import Any

import pytest

from neox_serve.core.jobs.options import file_name, options_of, problems, with_file_names
from neox_serve.core.jobs.rows import RowsWork
from neox_serve.core.jobs.work import WORK_TYPES, makes_calls
from tests.works import WORKS


@pytest.mark.parametrize("kind", WORKS)
def test_work_with_defaults_is_valid(kind: str) -> None:
    assert not list(problems(WORKS[kind]))


@pytest.mark.parametrize("kind", WORK_TYPES)
def test_every_field_of_work_is_an_option_with_a_help_text(kind: str) -> None:
    options = options_of(WORK_TYPES[kind])
    assert options.keys() == set(WORK_TYPES[kind].__dataclass_fields__)
    assert all(option.help.endswith(".") for option in options.values())


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("generate", "concurrency", 0),
        ("generate", "max_stall_s", 0.0),
        ("generate", "max_stall_s", 604_801.0),
        ("finetune", "adapter", "../x"),
        ("finetune", "adapter", "a/b/c"),
        ("finetune", "adapter", "x" * 65),
        ("finetune", "rank", 0),
        ("finetune", "alpha", 0.0),
        ("finetune", "targets", ("embed_in",)),
        ("finetune", "targets", ()),
        ("finetune", "epochs", 0),
        ("finetune", "learning_rate", float("nan")),
        ("finetune", "batch_tokens", 0),
        ("finetune", "evaluation_fraction", 0.6),
        ("finetune", "early_stop_epochs", -1),
        ("finetune", "seed", -1),
        ("finetune", "workers", 0),
        ("evaluate", "tasks", ()),
        ("evaluate", "tasks", ("../x",)),
        ("evaluate", "tasks", ("a,b",)),
        ("evaluate", "shots", -1),
        ("evaluate", "shots", 101),
        ("evaluate", "limit", -1),
        ("evaluate", "concurrency", 0),
        ("quantize", "scheme", "w2"),
        ("quantize", "sequences", 0),
        ("quantize", "sequence_tokens", 2_049),
        ("quantize", "held_out_tokens", 1),
        ("quantize", "serve_tokens", -1),
    ],
)
def test_wrong_field_is_named(kind: str, name: str, value: Any) -> None:
    assert [problem.field for problem in problems(replace(WORKS[kind], **{name: value}))] == [name]


def test_file_names_are_changed_within_vector_targets_too() -> None:
    work = RowsWork("in", "out", into="milvus:v.db#words")
    located = with_file_names(work, lambda name: f"/folder/{name}")
    assert located == RowsWork("/folder/in", "/folder/out", into="milvus:/folder/v.db#words")
    assert file_name(located, "into") == "/folder/v.db"


def test_vector_target_that_cannot_be_parsed_is_refused() -> None:
    with pytest.raises(ValueError, match="it must be milvus:FILE#COLLECTION"):
        file_name(RowsWork("in", "out", into="qdrant:a#b"), "into")


def test_work_makes_calls_unless_it_has_engines_of_its_own() -> None:
    assert {kind: makes_calls(work) for kind, work in WORKS.items()} == {
        "generate": True,
        "embed": True,
        "finetune": False,
        "evaluate": True,
        "quantize": False,
    }
    assert not makes_calls(RowsWork("in", "out", own_engine=True))
