"""Runs are described by a document or by options of a command line, and both describe the same things."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from deployments.jobs import run_documents
from deployments.jobs.access import Access
from deployments.jobs.bulk import run as bulk
from deployments.jobs.bulk.run import BulkRun
from deployments.jobs.evaluate import run as evaluate
from deployments.jobs.evaluate.run import EvaluateRun
from deployments.jobs.failures import JobError
from deployments.jobs.finetune import run as finetune
from deployments.jobs.finetune.run import FinetuneRun
from deployments.jobs.quantize import run as quantize
from deployments.jobs.quantize.run import QuantizeRun
from neox_serve.core.jobs.evaluate import EvaluateWork
from neox_serve.core.jobs.finetune import FinetuneWork
from neox_serve.core.jobs.quantize import QuantizeWork
from neox_serve.core.jobs.rows import RowsWork
from tests.run_arguments import arguments_of
from tests.works import changed_works

ACCESS = Access("h:1", Path("/key"), True, Path("/ca"), Path("/certificate"), Path("/private key"))
FULL_RUNS: Sequence[tuple[Any, Any]] = [
    (bulk, BulkRun("generate", RowsWork("/i n", "s3://b/o"), "job-1", ACCESS, Path("/report"))),
    (bulk, BulkRun("embed", RowsWork("/in", "/out", own_engine=True), config=Path("/engines.json"))),
    (evaluate, EvaluateRun(EvaluateWork(("piqa",), "out"), ACCESS, Path("/tasks"), Path("/cache"), 60.0, Path("/report"))),
    (finetune, FinetuneRun(FinetuneWork("in", "chat"), Path("/registry"), "/a model", "main", Path("/report"), "auto")),
    (quantize, QuantizeRun(QuantizeWork("w8a8", "o", "t", "h"), "/a model", "main", Path("/config"), Path("/report"))),
]
"""Runs that set every field besides those of their work."""


def run_with(kind: str, work: Any) -> tuple[Any, Any]:
    """A run of any kind, and the module that parses its arguments."""
    if isinstance(work, RowsWork):
        return bulk, BulkRun(kind, work, access=Access() if work.own_engine else Access("h:1"))
    if isinstance(work, EvaluateWork):
        return evaluate, EvaluateRun(work, Access("h:1"))
    return (finetune, FinetuneRun(work, Path("/registry"))) if isinstance(work, FinetuneWork) else (quantize, QuantizeRun(work))


@pytest.mark.parametrize(("kind", "field", "work"), list(changed_works()))
def test_every_field_of_work_can_be_given_by_document_and_by_option(kind: str, field: str, work: Any, tmp_path: Path) -> None:
    module, run = run_with(kind, work)
    run_documents.write(run, tmp_path / "run.json")
    assert module.parse_arguments(["--job", str(tmp_path / "run.json")]) == run
    assert module.parse_arguments(arguments_of(run)) == run


@pytest.mark.parametrize(("module", "run"), FULL_RUNS)
def test_every_other_field_of_a_run_can_be_given_by_document_and_by_option(module: Any, run: Any, tmp_path: Path) -> None:
    run_documents.write(run, tmp_path / "run.json")
    assert module.parse_arguments(["--job", str(tmp_path / "run.json")]) == run
    assert module.parse_arguments(arguments_of(run)) == run


def test_runs_of_this_test_set_every_field() -> None:
    for _, run in (FULL_RUNS[0], FULL_RUNS[2], FULL_RUNS[3], FULL_RUNS[4]):
        unset = [field.name for field in fields(run) if getattr(run, field.name) == field.default]
        assert unset in ([], ["config"])


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (bulk, ["generate", "--input", "i", "--output", "o", "--address", "a", "--concurrency", "0"], "--concurrency: 0 is invalid"),
        (bulk, ["generate", "--input", "i", "--output", "o"], "exactly one of --address and --own-engine"),
        (bulk, ["generate", "--input", "i", "--output", "o", "--address", "a", "--own-engine"], "exactly one of --address"),
        (bulk, ["generate", "--input", "i", "--output", "o", "--address", "a", "--into", "lancedb:a#b"], "only be used with embed"),
        (bulk, ["translate", "--input", "i", "--output", "o", "--address", "a"], "invalid choice: 'translate'"),
        (bulk, ["generate", "--output", "o", "--address", "a"], "required: --input"),
        (bulk, ["generate", "--input", "i", "--output", "o", "--address", "a", "--options", "[]"], "must be a JSON object"),
        (bulk, ["generate", "--input", "i", "--output", "o", "--address", "a", "--options", "{"], "not valid JSON"),
        (bulk, ["generate", "--input", "i", "--output", "o", "--address", "a", "--tls-key", "k"], "must be given together"),
        (evaluate, ["--tasks", "piqa", "--output", "o"], "--address must be given"),
        (
            finetune,
            ["--input", "x", "--adapter", "y", "--registry", "z", "--rank", "1000"],
            "--rank: 1000 is invalid; it must be in [1",
        ),
        (quantize, ["--job", "/nowhere.json"], "No such file"),
        (quantize, ["--job", "/nowhere.json", "--scheme", "w8a8"], "cannot be combined"),
    ],
)
def test_wrong_arguments_exit_with_2_and_are_named(
    module: Any, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        module.parse_arguments(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_document_with_an_unknown_key_exits_with_2_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    run_documents.write(run_with("quantize", QuantizeWork("w8a8", "o", "t", "h"))[1], path)
    path.write_text(path.read_text().replace('"sequences"', '"sequence"'))
    with pytest.raises(SystemExit) as ended:
        quantize.parse_arguments(["--job", str(path)])
    assert ended.value.code == 2
    assert "work.sequence: unknown key" in capsys.readouterr().err


def test_command_line_quotes_what_the_shell_would_split() -> None:
    assert run_documents.command_line("deployments.jobs.bulk", Path("/a b/run.json")).endswith(
        " -m deployments.jobs.bulk --job '/a b/run.json'"
    )


def test_key_that_cannot_be_read_is_named() -> None:
    with pytest.raises(JobError, match="cannot read the API key from /nowhere/key"):
        replace(ACCESS, api_key_file=Path("/nowhere/key")).api_key()
