"""What `neox-serve logs --grep ID` finds of a request, in the lines of gateway and engine."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from cluster.local.log_tail import LogTail, follow
from neox_serve.engine.fake.engine import FakeTiming
from neox_serve.settings.cluster import LogSettings
from neox_serve.telemetry import logs
from neox_serve.v1 import generation_pb2, inference_service_pb2
from tests.fakes.link_cluster import until
from tests.fakes.whole_path import FAILING_PROMPT, events_of, stream_request, unary_request, whole_path

Lines = list[dict[str, Any]]


@pytest.fixture
def grep(tmp_path: Path) -> Iterator[Callable[[str], Lines]]:
    """Makes this process log JSON lines as in a cluster, and finds those that contain a text."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level

    def found(text: str) -> Lines:
        lines: list[str] = []
        follow(LogTail(tmp_path), lambda line: text in line, lines.append, forever=False)
        return [json.loads(line) for line in lines]

    with (tmp_path / "worker-1.err").open("w") as file:
        logs.configure(LogSettings(format="json", level="debug"), "all", file)
        yield found
        root.handlers, root.level = handlers, level
        structlog.reset_defaults()


def events(lines: Lines) -> list[tuple[str, str]]:
    """Returns the event and the request id of each line."""
    return [(line["event"], line["request_id"]) for line in lines]


async def test_log_of_a_stream_shows_its_replica_and_its_end(grep: Callable[[str], Lines]) -> None:
    async with whole_path() as path:
        request = stream_request(stopping={"maxTokens": 2})
        request.request_id = "mine-1"
        await events_of(path, request)
        replica_id = path.replicas[0].replica_id
    placed, taken, call = grep("mine-1")
    assert events([placed, taken, call]) == [("request_placed", "mine-1"), ("request_accepted", "mine-1"), ("call", "mine-1")]
    assert placed["replica_id"] == replica_id
    assert (call["code"], call["completion_tokens"]) == ("OK", 2)


async def test_log_of_a_call_shows_each_of_its_prompts_and_inputs(grep: Callable[[str], Lines]) -> None:
    async with whole_path() as path:
        request = unary_request(prompts=2, stopping={"maxTokens": 2})
        request.request_id = "mine-2"
        await path.stubs.inference.Generate(request)
        inputs = [generation_pb2.Prompt(text=text) for text in ("a", "b")]
        await path.stubs.inference.Embed(inference_service_pb2.EmbedRequest(request_id="mine-3", inputs=inputs))
    for request_id in ("mine-2", "mine-3"):
        parts = [f"{request_id}#0", f"{request_id}#1"]
        expected = [(event, part) for event in ("request_placed", "request_accepted") for part in parts]
        assert sorted(events(grep(request_id))) == sorted([*expected, ("call", request_id)])


async def test_log_of_a_failed_call_shows_the_engine_error_hidden_from_the_client(grep: Callable[[str], Lines]) -> None:
    async with whole_path() as path:
        request = stream_request(FAILING_PROMPT)
        request.request_id = "mine-4"
        with pytest.raises(grpc.aio.AioRpcError):
            await events_of(path, request)
    *_, failed, call = grep("mine-4")
    assert (failed["event"], failed["reason"], failed["error"]) == ("request_failed", "ENGINE_FAILED", "CUDA error in layer 7")
    assert (call["event"], call["level"], call["reason"]) == ("call", "error", "ENGINE_FAILED")


async def test_log_of_a_moved_request_shows_both_replicas(grep: Callable[[str], Lines]) -> None:
    async with whole_path(replicas=2, timing=FakeTiming(ttft_s=0.3, itl_s=0.001)) as path:
        request = stream_request(stopping={"maxTokens": 2})
        request.request_id = "mine-5"
        call = path.stubs.inference.StreamGenerate(request)
        await until(lambda: not path.engines_idle())
        (lost,) = [n for n, engine in enumerate(path.engines) if engine.stats().waiting_requests]
        path.engines[lost].die()
        assert [event async for event in call]
        first, second = (path.replicas[n].replica_id for n in (lost, 1 - lost))
    lines = grep("mine-5")
    placed_and_taken = ["request_placed", "request_accepted"]
    assert [line["event"] for line in lines] == [*placed_and_taken, "request_failed", *placed_and_taken, "call"]
    placed = [(line["replica_id"], line["failed_replicas"]) for line in lines if line["event"] == "request_placed"]
    assert placed == [(first, []), (second, [first])]
