"""The load generator against a real gateway with scripted engines, and against a small server that speaks OpenAI's protocol."""

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from neox_serve.client import Tls
from neox_serve.core.errors import Reason, ServeError
from neox_serve.loadgen.arrivals import ClosedLoop, OpenLoop
from neox_serve.loadgen.generator import LoadGenerator, load_generator
from neox_serve.loadgen.load import Load
from neox_serve.loadgen.processes import StartError
from neox_serve.loadgen.records import Outcome
from neox_serve.loadgen.runner import Runner
from neox_serve.loadgen.targets import TargetError, TargetSpec
from neox_serve.loadgen.targets.grpc_gateway import GatewaySpec
from neox_serve.loadgen.targets.openai_server import OpenAiSpec
from neox_serve.loadgen.traces import recorded_in
from neox_serve.loadgen.workloads import Synthetic
from tests.fakes.certificates import make_authority
from tests.fakes.gateways import running_gateway
from tests.fakes.scripted_dispatcher import Script, ScriptedDispatcher

WORKLOAD = Synthetic("w", 6, prompt_tokens=5, output_tokens=4)


async def run(target: TargetSpec, load: Load) -> Outcome:
    """Runs a load in this process."""
    async with target.connect() as connected:
        runner = Runner(load, connected, lambda _: None)
        await runner.run()
        return runner.outcome()


async def test_gateway_closed_loop_records_each_request_completely() -> None:
    dispatcher = ScriptedDispatcher(Script(tokens=None))
    async with running_gateway(dispatcher) as gateway:
        outcome = await run(GatewaySpec(f"127.0.0.1:{gateway.port}", channels=2), Load(WORKLOAD, ClosedLoop(2)))
    assert [(one.error, one.prompt_tokens, one.token_ids) for one in outcome.records] == [(None, 5, (0, 1, 2, 3))] * 6
    assert all(one.intended_s <= one.sent_s <= (one.first_token_s or 0.0) <= one.end_s for one in outcome.records)
    assert {request.prompt_token_ids for request in dispatcher.opened} == {request.prompt for request in WORKLOAD.requests()}


async def test_gateway_open_loop_starts_do_not_depend_on_responses() -> None:
    dispatcher = ScriptedDispatcher(Script(tokens=None))
    async with running_gateway(dispatcher) as gateway:
        outcome = await run(GatewaySpec(f"127.0.0.1:{gateway.port}"), Load(WORKLOAD, OpenLoop(200.0, cv=0.0), max_in_flight=3))
    starts_s = [one.intended_s - outcome.records[0].intended_s for one in outcome.records]
    assert starts_s == pytest.approx([0.0, 0.005, 0.01, 0.015, 0.02, 0.025])
    assert all(one.late_s >= 0 and one.error is None for one in outcome.records)


async def test_gateway_refusal_is_recorded_with_its_status() -> None:
    dispatcher = ScriptedDispatcher(Script(refusal=ServeError(Reason.OVERLOADED, "full")))
    async with running_gateway(dispatcher) as gateway:
        outcome = await run(GatewaySpec(f"127.0.0.1:{gateway.port}"), Load(WORKLOAD, ClosedLoop(2)))
    assert {one.error for one in outcome.records} == {"UNAVAILABLE: full"}


async def test_gateway_counts_tokens_of_text_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "def f(x):", "max_tokens": 3}\n')
    prompts = recorded_in(tmp_path / "p.jsonl", max_model_len=100, vocabulary_size=800)
    async with running_gateway(ScriptedDispatcher(Script(tokens=None))) as gateway:
        (one,) = (await run(GatewaySpec(f"127.0.0.1:{gateway.port}"), Load(prompts, ClosedLoop(1)))).records
    assert (one.prompt_tokens > 1, len(one.token_ids)) == (True, 3)


async def test_generator_process_continues_after_an_interrupt(tmp_path: Path) -> None:
    dispatcher = ScriptedDispatcher(Script(tokens=None))
    async with running_gateway(dispatcher) as gateway:
        target = GatewaySpec(f"127.0.0.1:{gateway.port}")
        whole, cut, after = await asyncio.to_thread(_three_runs, target, tmp_path, dispatcher)
    assert [one.error for one in whole.records] == [None] * 6
    assert (cut.records, cut.unfinished) == ([], 2)
    assert [one.token_ids for one in after.records] == [one.token_ids for one in whole.records]


def _three_runs(target: TargetSpec, folder: Path, dispatcher: ScriptedDispatcher) -> tuple[Outcome, Outcome, Outcome]:
    with load_generator(target, folder) as generator:
        whole = generator.run(Load(WORKLOAD, ClosedLoop(2)))
        dispatcher.script = Script(silent=True)
        cut = _interrupted(generator, dispatcher)
        dispatcher.script = Script(tokens=None)
        return whole, cut, generator.run(Load(WORKLOAD, ClosedLoop(2)))


def _interrupted(generator: LoadGenerator, dispatcher: ScriptedDispatcher) -> Outcome:
    """Runs a load and interrupts it once two requests are in flight."""

    def interrupt_when_in_flight() -> None:
        while len(dispatcher.live) < 2:
            threading.Event().wait(0.01)
        generator.interrupt()

    watcher = threading.Thread(target=interrupt_when_in_flight)
    watcher.start()
    outcome = generator.run(Load(WORKLOAD, ClosedLoop(2)))
    watcher.join()
    return outcome


async def test_generator_process_returns_more_records_than_its_socket_buffers(tmp_path: Path) -> None:
    load = Load(Synthetic("w", 100, prompt_tokens=2, output_tokens=1_500), ClosedLoop(50))
    async with running_gateway(ScriptedDispatcher(Script(tokens=None))) as gateway:
        outcome = await asyncio.to_thread(_one_run, GatewaySpec(f"127.0.0.1:{gateway.port}"), tmp_path, load)
    assert [len(one.token_ids) for one in outcome.records] == [1_500] * 100


def _one_run(target: TargetSpec, folder: Path, load: Load) -> Outcome:
    with load_generator(target, folder) as generator:
        return generator.run(load)


async def test_generator_process_without_connection_reports_the_reason(tmp_path: Path) -> None:
    target = GatewaySpec("127.0.0.1:1", tls=Tls(root_ca=tmp_path / "none.pem"))
    with pytest.raises(StartError, match="No such file"):
        await asyncio.to_thread(_one_run, target, tmp_path, Load(WORKLOAD, ClosedLoop(1)))


@asynccontextmanager
async def openai_server(tls: Any = None) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Runs a server that generates the token ids 0, 1, ... and refuses the prompt "bad". Yields its URL and the requests it received."""
    asked: list[dict[str, Any]] = []

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "max_model_len": 77}]})

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked.append(body | {"key": request.headers.get("x-key")})
        if body["prompt"] == "bad":
            return web.json_response({"error": "bad prompt"}, status=400)
        response = web.StreamResponse()
        await response.prepare(request)
        for token_id in range(body["max_tokens"]):
            await _send_event(response, {"choices": [{"text": "x", "token_ids": [token_id]}]})
        if "stream_options" in body:
            await _send_event(response, {"choices": [], "usage": {"prompt_tokens": 9}})
        await response.write(b"data: [DONE]\n\n")
        return response

    application = web.Application()
    application.add_routes([web.get("/v1/models", models), web.post("/v1/completions", complete)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        yield f"http{'s' if tls else ''}://localhost:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


async def _send_event(response: web.StreamResponse, message: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(message).encode() + b"\n\n")


async def test_openai_server_closed_loop_records_each_request_completely() -> None:
    async with openai_server() as (url, asked):
        outcome = await run(OpenAiSpec(url, "m", headers=(("x-key", "k"),)), Load(WORKLOAD, ClosedLoop(2)))
    assert [(one.error, one.prompt_tokens, one.token_ids) for one in outcome.records] == [(None, 5, (0, 1, 2, 3))] * 6
    assert {(body["model"], body["ignore_eos"], body["key"]) for body in asked} == {("m", True, "k")}


async def test_openai_server_refusal_of_one_prompt_leaves_the_other(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "good", "max_tokens": 3}\n{"prompt": "bad", "max_tokens": 3}\n')
    prompts = recorded_in(tmp_path / "p.jsonl", max_model_len=100, vocabulary_size=800)
    async with openai_server() as (url, _):
        good, bad = (await run(OpenAiSpec(url, "m"), Load(prompts, ClosedLoop(1)))).records
    assert (good.error, good.prompt_tokens, good.token_ids) == (None, 9, (0, 1, 2))
    assert bad.error == 'HTTP 400: {"error": "bad prompt"}'


async def test_openai_server_reports_its_context_length_over_tls(tmp_path: Path) -> None:
    root, pair = make_authority(tmp_path, ("localhost",))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    async with openai_server(context) as (url, _):
        assert await OpenAiSpec(url, "m", root_ca=root).max_model_len() == 77
        with pytest.raises(TargetError, match="does not serve model 'other'; it serves m"):
            await OpenAiSpec(url, "other", root_ca=root).max_model_len()
        with pytest.raises(TargetError, match="certificate verify failed"):
            await OpenAiSpec(url, "m").max_model_len()
