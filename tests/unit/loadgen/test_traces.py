"""Recorded workloads: lengths, prefixes, times and invalid files."""

import json
from pathlib import Path
from typing import Any

import pytest

from neox_serve.loadgen.trace_files import TraceError, TraceKind
from neox_serve.loadgen.traces import Recorded, clip, recorded_in, survey
from neox_serve.loadgen.workloads import Synthetic

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,40,10\n2023-11-16 18:17:04.4799600,80,30\n"


def recorded(path: Path, text: str | list[Any], **options: Any) -> Recorded:
    """Writes a recording with this text, or with these objects, one per line."""
    path.write_text(text if isinstance(text, str) else "".join(f"{json.dumps(line)}\n" for line in text))
    return recorded_in(path, **{"max_model_len": 100, "vocabulary_size": 800, **options})


def mooncake(timestamp: int, input_length: int, *hash_ids: int) -> dict[str, Any]:
    return {"timestamp": timestamp, "input_length": input_length, "output_length": 17, "hash_ids": hash_ids}


def test_synthetic_requests_have_the_given_lengths_and_vocabulary() -> None:
    requests = list(Synthetic("w", 4, prompt_tokens=8, output_tokens=3, vocabulary_size=100).requests())
    assert [(len(request.prompt), request.output_tokens) for request in requests] == [(8, 3)] * 4
    assert all(12 <= int(token_id) < 100 for request in requests for token_id in request.prompt)


def test_synthetic_warm_up_is_short_and_shares_nothing() -> None:
    workload = Synthetic("w", 4, prompt_tokens=8, output_tokens=64)
    warm_up = list(workload.warm_up(2).requests())
    assert [request.output_tokens for request in warm_up] == [16, 16]
    assert not {request.prompt for request in warm_up} & {request.prompt for request in workload.requests()}


def test_azure_requests_have_recorded_times_and_clipped_lengths(tmp_path: Path) -> None:
    workload = recorded(tmp_path / "t.csv", AZURE)
    requests = list(workload.requests())
    assert [(len(request.prompt), request.output_tokens) for request in requests] == [(40, 10), (70, 30)]
    first_s, second_s = (request.recorded_s for request in requests)
    assert first_s is not None
    assert second_s == pytest.approx(first_s + 0.5)
    found = survey(workload)
    assert (found.requests, found.clipped, found.timed) == (2, 1, True)
    assert found.duration_s == pytest.approx(0.5)
    assert requests == list(workload.requests())


def test_mooncake_equal_hash_ids_give_equal_tokens_in_scaled_blocks(tmp_path: Path) -> None:
    lines = [mooncake(0, 1100, 1, 2, 3), mooncake(500, 1536, 1, 2, 4), mooncake(600, 40, 1)]
    workload = recorded(tmp_path / "t.jsonl", lines, max_model_len=1000)
    first, second, short = (request.prompt for request in workload.requests())
    assert workload.kind is TraceKind.MOONCAKE
    assert (len(first), len(second), len(short)) == (138, 192, 5)
    assert first[:128] == second[:128]
    assert first[128:] != second[128:138]
    assert short == first[:5]
    assert [(request.output_tokens, request.recorded_s) for request in workload.requests()] == [(3, 0.0), (3, 0.5), (3, 0.6)]


def test_mooncake_clipped_prompt_keeps_its_prefix(tmp_path: Path) -> None:
    lines = [mooncake(0, 1536, 1, 2, 4)]
    whole, clipped = (recorded(tmp_path / "t.jsonl", lines, max_model_len=size) for size in (1000, 90))
    assert next(clipped.requests()).prompt == next(whole.requests()).prompt[:87]


def test_prompts_of_our_own_format_are_unchanged(tmp_path: Path) -> None:
    lines = [{"prompt": "hi", "max_tokens": 5}, {"token_ids": [1, 2], "max_tokens": 500}]
    workload = recorded(tmp_path / "t.jsonl", lines)
    assert [(request.prompt, request.output_tokens, request.recorded_s) for request in workload.requests()] == [
        ("hi", 5, None),
        ((1, 2), 500, None),
    ]
    assert (survey(workload).clipped, survey(workload).timed) == (0, False)


def test_recording_with_a_count_has_that_many_requests(tmp_path: Path) -> None:
    assert survey(recorded(tmp_path / "t.csv", AZURE, count=1)).requests == 1


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [((60, 40), (60, 40)), ((200, 10), (90, 10)), ((10, 200), (10, 90)), ((200, 200), (50, 50)), ((60, 60), (50, 50))],
)
def test_clip_fits_both_lengths_into_the_context(lengths: tuple[int, int], expected: tuple[int, int]) -> None:
    assert clip(*lengths, 100) == expected


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "", "t.csv:1: TIMESTAMP: missing column"),
        ("t.csv", "TIMESTAMP,ContextTokens\n", "t.csv:1: GeneratedTokens: missing column; the file has TIMESTAMP, ContextTokens"),
        ("t.csv", AZURE + "soon,1,1\n", "t.csv:4: TIMESTAMP: must be a date and time, got 'soon'"),
        ("t.csv", AZURE + "2023-11-17,x,1\n", "t.csv:4: ContextTokens: must be an integer of at least 1, got 'x'"),
        ("t.csv", AZURE + "2023-11-17,1\n", "t.csv:4: GeneratedTokens: missing"),
        ("t.csv", AZURE + "2022-11-16,1,1\n", "t.csv:4: TIMESTAMP: must not be earlier than on the line before, got '2022-11-16'"),
        ("t.csv", AZURE[:40], "t.csv: contains no request"),
        ("t.jsonl", "", "t.jsonl: the file is empty"),
        ("t.jsonl", "{", "t.jsonl:1: invalid JSON: "),
        ("t.jsonl", "[]", "t.jsonl:1: must be a JSON object"),
        ("t.jsonl", [mooncake(0, 513, 1)], "t.jsonl:1: hash_ids: must be 2 ids for an input_length of 513, got [1]"),
        ("t.jsonl", [mooncake(0, 1, 1), mooncake(-1, 1, 1)], "t.jsonl:2: timestamp: must be a non-negative number, got -1"),
        ("t.jsonl", [{"max_tokens": 1}], 't.jsonl:1: prompt: exactly one of "prompt" and "token_ids" must be given'),
        ("t.jsonl", [{"prompt": "", "max_tokens": 1}], "t.jsonl:1: prompt: must be a non-empty text, got ''"),
        ("t.jsonl", [{"token_ids": [1, True], "max_tokens": 1}], "t.jsonl:1: token_ids: must be a list of non-negative integers"),
        ("t.jsonl", [{"prompt": "x", "max_tokens": 0}], "t.jsonl:1: max_tokens: must be an integer of at least 1, got 0"),
        (
            "t.jsonl",
            [{"prompt": "x", "max_tokens": 1, "at_s": 1}, {"prompt": "x", "max_tokens": 1}],
            "t.jsonl:2: at_s: must be given on every",
        ),
    ],
)
def test_invalid_file_is_rejected_with_line_field_and_value(tmp_path: Path, name: str, text: str | list[Any], said: str) -> None:
    with pytest.raises(TraceError) as caught:
        survey(recorded(tmp_path / name, text))
    assert said in str(caught.value)


def test_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        recorded_in(tmp_path / "none.jsonl", max_model_len=100, vocabulary_size=800)


@pytest.mark.parametrize(("options", "said"), [({"divisor": 7}, "divisor 7"), ({"max_model_len": 1}, "max_model_len 1")])
def test_recording_with_impossible_values_is_rejected(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recorded(tmp_path / "t.csv", AZURE, **options)
