"""Rows of bulk work: bad lines are found, and after any crash each row is completed exactly once."""

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.jobs.bulk.rows import (
    EMBED,
    GENERATE,
    STOPPING_REASONS,
    BadRow,
    CompletedRows,
    Row,
    check_options,
    foreign_row,
    grouped_by_prefix,
    output_line,
    read_completed,
    read_rows,
    request_id,
    request_options,
)
from neox_serve.client import Completion, EmbedResult, GenerateResult, PromptResult, Timings, Usage
from neox_serve.core.errors import Reason, ServeError, invalid
from neox_serve.core.types import Finish, FinishReason


def result(text: str) -> GenerateResult:
    """Returns a client's result for one prompt."""
    usage = Usage(1, 0, 1, 0)
    completion = Completion(0, text, (5,), Finish(FinishReason.STOP, "\n"))
    prompt = PromptResult((completion,), (), usage)
    return GenerateResult("r", "m", 3, (prompt,), usage, Timings(0, 0, 0, 0))


def good(lines: list[bytes]) -> list[Row]:
    """Returns the rows of an input without bad rows."""
    rows = [*read_rows(GENERATE, lines)]
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [row for row in rows if isinstance(row, Row)]


def completed_in(content: bytes) -> CompletedRows:
    return read_completed(io.BytesIO(content))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not JSON"),
        (b"[1]", "must be a JSON object, got list"),
        (b"{}", '"prompt" must be'),
        (b'{"prompt": ""}', '"prompt" must be'),
        (b'{"prompt": []}', '"prompt" must be'),
        (b'{"prompt": [true]}', '"prompt" must be'),
        (b'{"prompt": [-1]}', "prompts[0].token_ids.ids"),
        (b'{"prompt": "a", "max_token": 3}', "unknown keys: max_token"),
        (b'{"prompt": "a", "request_id": "x"}', "unknown keys: request_id"),
        (b'{"prompt": "a", "id": 3}', '"id" must be a text'),
        (b'{"prompt": "a", "max_tokens": -3}', "parameters.stopping.max_tokens"),
        (b'{"prompt": "a", "logit_bias": {"x": 1}}', "invalid literal"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, ""),
    ],
)
def test_bad_line_is_reported_with_its_problem(line: bytes, problem: str) -> None:
    rows = [*read_rows(GENERATE, [b'{"prompt": "fine"}\n', line])]
    assert isinstance(rows[0], Row)
    assert isinstance(rows[1], BadRow)
    assert rows[1].number == 2
    assert problem in rows[1].problem


def test_repeated_id_is_bad_and_blank_lines_are_skipped() -> None:
    rows = [*read_rows(GENERATE, [b'{"prompt": "a", "id": "x"}\n', b"  \n", b'{"prompt": "b", "id": "x"}\n', b'{"prompt": "b"}'])]
    assert [row.number for row in rows] == [1, 3, 4]
    assert isinstance(rows[1], BadRow)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_vectors_are_preserved_in_the_output(values: list[float]) -> None:
    (row,) = [*read_rows(EMBED, [b'{"text": "a"}'])]
    assert isinstance(row, Row)
    answer = EmbedResult("r", "m", np.array([values], dtype=np.float32), (1,), Usage(1, 0, 0, 0), Timings(0, 0, None, 0))
    told = json.loads(output_line(EMBED, row, answer))["vector"]
    np.testing.assert_array_equal(np.array(told, dtype=np.float32), answer.vectors[0])


def test_row_key_only_depends_on_the_values() -> None:
    one, other, changed = good([b'{"prompt": "a", "n": 1}', b'{ "n":1, "prompt":"a"}', b'{"prompt": "a", "n": 2}'])
    assert one.key == other.key != changed.key


def test_row_options_override_the_jobs_options() -> None:
    (row,) = good([b'{"prompt": "a", "n": 2, "logit_bias": {"7": -1.5}}'])
    assert request_options(row, {"n": 1, "max_tokens": 9}) == {
        "priority": "bulk",
        "n": 2,
        "max_tokens": 9,
        "logit_bias": {7: -1.5},
    }
    assert request_options(row, {"priority": "default"})["priority"] == "default"
    assert request_id("job-1", row) == "job-1:1"


@pytest.mark.parametrize("options", [{"max_token": 1}, {"max_tokens": "many"}, {"truncation": "middle"}])
def test_invalid_options_are_refused(options: Any) -> None:
    with pytest.raises((ServeError, ValueError)):
        check_options(GENERATE, options)


def test_output_line_contains_the_result_or_the_error() -> None:
    (row,) = good([b'{"prompt": "a", "id": "x"}'])
    answer = json.loads(output_line(GENERATE, row, result("né\n")))
    assert (answer["row"], answer["id"], answer["completions"][0]["text"], answer["seed"]) == (1, "x", "né\n", 3)
    assert answer["completions"][0]["finish"] == {"reason": "stop", "stop": "\n"}
    refusal = json.loads(output_line(GENERATE, row, invalid("parameters.n", "too many")))
    assert refusal["error"]["reason"] == "INVALID_ARGUMENT"
    assert refusal["error"]["violations"] == [{"field": "parameters.n", "description": "too many"}]


def test_reasons_that_are_not_about_the_row_stop_the_run() -> None:
    completing = set(Reason) - STOPPING_REASONS
    assert completing == {
        Reason.INVALID_ARGUMENT,
        Reason.PROMPT_TOO_LONG,
        Reason.UNKNOWN_ADAPTER,
        Reason.BROKEN_ADAPTER,
        Reason.REQUEST_NEVER_FITS,
        Reason.REQUEST_TOO_LARGE,
        Reason.DEADLINE_EXCEEDED,
        Reason.ENGINE_FAILED,
        Reason.INTERNAL,
    }


def test_rows_of_another_input_are_detected() -> None:
    first, second = good([b'{"prompt": "a"}', b'{"prompt": "b"}'])
    completed = completed_in(output_line(GENERATE, second, result("B")))
    assert foreign_row(completed.keys, {1: first.key, 2: second.key}) is None
    assert foreign_row(completed.keys, {1: first.key, 2: "other"}) == 2
    assert foreign_row(completed.keys, {1: first.key}) == 2


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(prompts=st.lists(texts, min_size=1, max_size=6), data=st.data())
def test_output_cut_at_any_byte_and_resumed_has_each_row_once(prompts: list[str], data: st.DataObject) -> None:
    rows = good([json.dumps({"prompt": prompt}).encode() for prompt in prompts])
    content = b""
    for _ in range(data.draw(st.integers(0, 4), label="kills")):
        completed = completed_in(content)
        content = content[: completed.valid_bytes]
        left = data.draw(st.permutations([row for row in rows if row.number not in completed.positions]), label="order")
        written = content + b"".join(output_line(GENERATE, row, result(row.content.upper())) for row in left)
        content = written[: data.draw(st.integers(len(content), len(written)), label="killed at")]
        content += data.draw(st.sampled_from([b"", b"\x00" * 7, b"\x00\n", b'{"row": 1}\n']), label="what the disk made of the rest")
    completed = completed_in(content)
    content = content[: completed.valid_bytes]
    content += b"".join(output_line(GENERATE, row, result(row.content.upper())) for row in rows if row.number not in completed.positions)

    lines = [json.loads(line) for line in content.splitlines()]
    assert sorted(line["row"] for line in lines) == [row.number for row in rows]
    assert {line["row"]: line["completions"][0]["text"] for line in lines} == {row.number: row.content.upper() for row in rows}
    final = completed_in(content)
    assert final.valid_bytes == len(content)
    assert final.in_order == ([line["row"] for line in lines] == sorted(line["row"] for line in lines))
    for number, place in final.positions.items():
        assert json.loads(content[place.offset : place.offset + place.length])["row"] == number


@given(cut=st.integers(0, 400))
def test_cut_output_has_only_complete_lines(cut: int) -> None:
    rows = good([json.dumps({"prompt": prompt}).encode() for prompt in ("a", "b", "ü")])
    lines = [output_line(GENERATE, row, result("é" * 3)) for row in rows]
    content = b"".join(lines)[:cut]
    completed = completed_in(content)
    whole = [position for position in range(4) if len(b"".join(lines[:position])) <= len(content)][-1]
    assert [*completed.positions] == [row.number for row in rows[:whole]]
    assert completed.valid_bytes == len(b"".join(lines[:whole]))


def test_rows_with_equal_prefixes_are_grouped_within_parts_of_the_file() -> None:
    rows = [Row(number, "", None, content, {}) for number, content in enumerate(["b2", [9, 1], "a1", "b1", [9, 0], "a2"], start=1)]
    assert [row.content for row in grouped_by_prefix(rows)] == ["a1", "a2", "b1", "b2", [9, 0], [9, 1]]
    assert [row.number for row in grouped_by_prefix(iter(rows), group_rows=3)] == [3, 1, 2, 6, 4, 5]
