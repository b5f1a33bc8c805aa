"""The curves of the growth of cost: their points, results and picture."""

import json
from pathlib import Path

import pytest

from neox_serve.loadgen.summaries import summarize
from tests.bench.growth import plot
from tests.bench.growth.points import (
    ASYNC_LLM,
    FULL,
    GATEWAYS,
    PROMPT,
    REPLICAS,
    SMOKE,
    STREAMS,
    WIDE_STREAMS,
    Measured,
    by_prompt,
    by_streams,
    in_rounds,
    wide,
)
from tests.bench.ladder.rungs import CLIENT

VOCABULARY_SIZE = 4096


def test_by_streams_responses_last_the_configured_time() -> None:
    points = by_streams(FULL, VOCABULARY_SIZE)
    assert [point.at for point in points] == [1, 4, 16, 64, 128, 256, 512]
    assert {point.workload.output_tokens for point in points} == {150}
    assert all(point.workload.streams == point.workload.requests == point.at for point in points)


def test_wide_has_many_streams() -> None:
    point = wide(REPLICAS, 4, FULL, VOCABULARY_SIZE)
    assert (point.over, point.at, point.workload.streams) == (REPLICAS, 4, WIDE_STREAMS)


def test_by_prompt_has_one_request_at_a_time() -> None:
    points = by_prompt(ASYNC_LLM, FULL, VOCABULARY_SIZE)
    assert [point.workload.prompt_tokens for point in points] == [16, 64, 256, 512, 1024, 1536]
    assert {point.workload.streams for point in points} == {1}
    assert {point.system for point in points} == {ASYNC_LLM}


def test_in_rounds_alternates_the_order_and_changes_prompts() -> None:
    points = by_prompt(ASYNC_LLM, SMOKE, VOCABULARY_SIZE)
    every = in_rounds(points, FULL)
    assert [(point.at, point.workload.round) for point in every] == [(16, 0), (1024, 0), (1024, 1), (16, 1)]


def test_measured_cpu_time_excludes_the_client() -> None:
    point = by_streams(SMOKE, VOCABULARY_SIZE)[0]
    summary = summarize([])
    measured = Measured(point, summary, {CLIENT: 5.0, "gateway": 1e-6, "replica": 2e-6})
    assert measured.system_cpu_us_per_token == pytest.approx(3.0)
    assert measured.cpu_us_per_token("gateway") == pytest.approx(1.0)
    assert measured.cpu_us_per_token("router") == 0.0


def test_write_draws_the_picture_from_the_result_file(tmp_path: Path) -> None:
    figures = {"output_throughput": 10.0, "median_ttft_ms": 5.0, "system_cpu_us_per_token": 40.0, "system_cpu_ms_per_request": 1.0}
    places = {STREAMS: (1, 64), GATEWAYS: (1, 2), REPLICAS: (1, 4), PROMPT: (16, 1024)}
    points = [{"over": over, "at": at, "system": "fake engine", **figures} for over, ats in places.items() for at in ats]
    router = [{"replicas": 10, "decisions_per_s": 4e4, "p99_s": 2e-5}, {"replicas": 100, "decisions_per_s": 3e4, "p99_s": 3e-5}]
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"points": points, "router": router}))
    assert plot.write(result).read_bytes().startswith(b"\x89PNG")
