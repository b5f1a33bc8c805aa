from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.jobs.finetune.arguments import FinetuneJob, arguments_of, parse_arguments
from neox_serve.core.jobs.finetune import TARGETS, FinetuneWork

WORK = FinetuneWork("in.jsonl", "acme/lines")


@given(
    st.builds(
        FinetuneWork,
        input=st.just("in.jsonl"),
        adapter=st.just("lines"),
        rejects=st.sampled_from(["", "bad.jsonl"]),
        rank=st.integers(1, 256),
        alpha=st.floats(0.001, 1e4),
        targets=st.lists(st.sampled_from(TARGETS), min_size=1, unique=True).map(tuple),
        epochs=st.integers(1, 1000),
        learning_rate=st.floats(1e-9, 1),
        batch_tokens=st.integers(1, 1 << 24),
        evaluation_fraction=st.floats(0, 0.5),
        early_stop_epochs=st.integers(0, 1000),
        seed=st.integers(0, (1 << 31) - 1),
        workers=st.integers(1, 64),
    )
)
def test_job_is_made_again_from_its_arguments(work: FinetuneWork) -> None:
    job = FinetuneJob(work, "builtin", Path("/registry"), "main", Path("/report.json"), "auto")
    assert parse_arguments(arguments_of(job)) == job
    assert FinetuneWork.from_values(asdict(work)) == work


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("adapter", "../x"),
        ("adapter", "a/b/c"),
        ("adapter", "x" * 65),
        ("rank", 0),
        ("alpha", 0.0),
        ("targets", ("embed_in",)),
        ("targets", ()),
        ("epochs", 0),
        ("learning_rate", float("nan")),
        ("batch_tokens", 0),
        ("evaluation_fraction", 0.6),
        ("early_stop_epochs", -1),
        ("seed", -1),
        ("workers", 0),
    ],
)
def test_wrong_option_is_named(name: str, value: Any) -> None:
    assert [problem[0] for problem in replace(WORK, **{name: value}).problems()] == [name]


def test_defaults_have_no_problem() -> None:
    assert not list(WORK.problems())


def test_wrong_argument_exits_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--input", "x", "--adapter", "y", "--registry", "z", "--rank", "1000"])
    assert ended.value.code == 2
    assert "argument --rank: got 1000, must be in [1, 256]" in capsys.readouterr().err
