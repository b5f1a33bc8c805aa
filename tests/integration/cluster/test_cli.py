"""The command against a real gRPC server whose answers are scripted."""

import asyncio
import http.server
import io
import json
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.cli import app
from neox_serve.cli.views.status import missing_view, status_view
from neox_serve.client import ServeError
from neox_serve.core.errors import Reason, invalid
from neox_serve.v1 import generation_pb2, ops_service_pb2
from tests.fakes.scripted_gateway import ScriptedGateway

COMMAND = [sys.executable, "-m", "cluster.cli"]


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with ScriptedGateway() as scripted:
        yield scripted


async def call(gateway: ScriptedGateway, *arguments: str, stdin: str | None = None) -> Any:
    """Runs a command that calls the gateway."""
    return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--address", gateway.address], input=stdin)


async def start(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdin=pipe, stdout=pipe, stderr=pipe)


async def test_generate_streams_text_and_a_newline(gateway: ScriptedGateway) -> None:
    done = await call(gateway, "generate", "a bc d", "--stream")
    assert (done.exit_code, done.stdout) == (0, "A BC D\n")


async def test_generate_without_a_terminal_does_not_stream(gateway: ScriptedGateway) -> None:
    done = await call(gateway, "generate", "a bc")
    assert done.stdout == "A BC\n"
    assert [received.method for received in gateway.received] == ["Generate"]


async def test_score_prints_the_most_likely_first(gateway: ScriptedGateway) -> None:
    done = await call(gateway, "score", "abc", " one", " two")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [f"    -3.000     1 tokens  greedy  {text!r}" for text in (" one", " two")]
    (request,) = gateway.requests("Score")
    assert [(item.context.text, item.continuation.text) for item in request.items] == [("abc", " one"), ("abc", " two")]


async def test_classify_scores_each_label_with_and_without_the_text(gateway: ScriptedGateway, tmp_path: Path) -> None:
    rows = [{"text": "it rained", "label": "bad"}, {"text": "the sun shone", "label": "good"}]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = await call(gateway, "classify", "it rained again", "--examples", str(tmp_path / "examples.jsonl"), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"text": "it rained again", "label": "bad", "probabilities": {"bad": 0.5, "good": 0.5}}
    (request,) = gateway.requests("Score")
    prompt = "Text: the sun shone\nLabel: good\n\nText: it rained\nLabel: bad\n\nText: {}\nLabel:"
    expected = [(prompt.format(text), f" {label}") for text in ("it rained again", "N/A") for label in ("bad", "good")]
    assert [(item.context.text, item.continuation.text) for item in request.items] == expected


async def test_classify_with_many_labels_splits_its_calls_at_the_limit(gateway: ScriptedGateway) -> None:
    labels = [f"label {number}" for number in range(45)]
    done = await call(gateway, "classify", "one", "two", *(argument for label in labels for argument in ("--label", label)), "--json")
    assert done.exit_code == 0, done.output
    assert [set(json.loads(line)["probabilities"]) for line in done.stdout.splitlines()] == [set(labels)] * 2
    requests = gateway.requests("Score")
    assert [len(request.items) for request in requests] == [64, 26] * 2
    assert [item.continuation.text for request in requests for item in request.items] == [f" {label}" for label in labels * 4]
    assert len(gateway.requests("ListModels")) == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--label", "one"], "labels: ['one'] is invalid; there must be two or more labels"),
        (
            ["--label", "a", "--label", "b", "--template", "no place"],
            "template: 'no place' is invalid; it must contain {text} exactly once",
        ),
        (["--examples", "{folder}/none.jsonl"], "No such file"),
        (["--examples", "{folder}/bad.jsonl"], 'line 2: "label" must be a non-empty text'),
    ],
)
async def test_classify_invalid_input_is_named(gateway: ScriptedGateway, tmp_path: Path, arguments: list[str], problem: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "a"}\n')
    done = await call(gateway, "classify", "text", *(argument.replace("{folder}", str(tmp_path)) for argument in arguments))
    assert done.exit_code == 1
    assert problem in done.stderr.replace("\n", " ")
    assert not gateway.received


async def test_generate_reads_standard_input(gateway: ScriptedGateway) -> None:
    assert (await call(gateway, "generate", "-", stdin="from\nstdin")).stdout == "FROM\nSTDIN\n"


async def test_generate_with_every_option_sends_it(gateway: ScriptedGateway, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    sampling = "--temperature 0.5 --top-p 0.5 --top-k 4 --min-p 0.25 --repetition-penalty 1.5 --presence-penalty -1 --frequency-penalty 1"
    stopping = "--max-tokens 5 --min-tokens 1 --stop END --stop STOP --stop-token-id 0 --ignore-eos --include-stop"
    rest = "--seed 3 --logit-bias 7=-2.5 --n 2 --logprobs 1 --prompt-logprobs 3 --truncation keep_end --on-deadline partial"
    names = f"--model m --adapter a --request-id r-1 --timeout 60 --json-schema @{tmp_path / 'schema.json'}"
    done = await call(gateway, "generate", "hi", *f"{sampling} {stopping} {rest} {names}".split())
    assert done.exit_code == 0, done.output
    (request,) = gateway.requests("Generate")
    assert (request.model, request.adapter, request.request_id) == ("m", "a", "r-1")
    for message in (request.parameters, request.parameters.sampling, request.parameters.stopping):
        assert {field.name for field, _ in message.ListFields()} == {field.name for field in message.DESCRIPTOR.fields}
    assert list(request.parameters.stopping.stop_sequences) == ["END", "STOP"]
    assert request.parameters.structured_output.json_schema == '{"type": "object"}'
    assert dict(request.parameters.sampling.logit_bias) == {7: -2.5}
    assert done.stdout == "--- 0 (stop)\nHI\n--- 1 (stop)\nHI\n"


async def test_generate_with_beams_sends_them(gateway: ScriptedGateway) -> None:
    await call(gateway, "generate", "hi", "--beam-width", "3", "--length-penalty", "0.5", "--num-return", "2")
    (request,) = gateway.requests("Generate")
    assert request.beam_search == generation_pb2.BeamSearch(beam_width=3, length_penalty=0.5, num_return=2)


async def test_generate_with_chunk_options_sends_them(gateway: ScriptedGateway) -> None:
    done = await call(gateway, "generate", "a b", "--stream", "--chunk-interval", "0.25", "--chunk-tokens", "4")
    assert done.stdout == "A B\n"
    (request,) = gateway.requests("StreamGenerate")
    assert (request.options.min_chunk_interval.ToMilliseconds(), request.options.min_chunk_tokens) == (250, 4)


async def test_generate_json_is_one_object_or_one_line_per_event(gateway: ScriptedGateway) -> None:
    whole = json.loads((await call(gateway, "generate", "hi", "--json")).stdout)
    assert whole["results"][0]["completions"][0]["text"] == "HI"
    lines = (await call(gateway, "generate", "a b", "--json", "--stream")).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert [event.get("text") for event in events] == ["A", " B", None]
    assert events[-1]["usage"]["completion_tokens"] == 2


async def test_embed_tokenize_detokenize_and_models_print_their_results(gateway: ScriptedGateway) -> None:
    assert (await call(gateway, "embed", "abc", "d")).stdout.splitlines()[0] == "[+3.0000, +1.0000, ...]  2 dimensions, 3 tokens"
    assert json.loads((await call(gateway, "embed", "abc", "--json")).stdout)["vectors"] == [[3.0, 1.0]]
    assert (await call(gateway, "tokenize", "ab", "c")).stdout == "97 98\n99\n"
    assert (await call(gateway, "tokenize", "ab", "--offsets")).stdout == "97:0-1 98:1-2\n"
    assert (await call(gateway, "detokenize", "97", "98,99")).stdout == "abc\n"
    assert (await call(gateway, "detokenize", "-", stdin="97 98")).stdout == "ab\n"
    assert "scripted" in (await call(gateway, "models")).stdout
    assert json.loads((await call(gateway, "models", "--json")).stdout)[0]["capabilities"] == ["embed", "generate"]


async def test_embed_sends_its_options(gateway: ScriptedGateway) -> None:
    await call(gateway, "embed", "a", "--pooling", "last", "--no-normalize", "--truncation", "keep_start", "--model", "m")
    (request,) = gateway.requests("Embed")
    assert (request.pooling, request.normalize, request.truncation, request.model) == (1, False, 2, "m")


async def test_error_of_the_service_exits_with_1_and_shows_the_field(gateway: ScriptedGateway) -> None:
    gateway.script("Generate", invalid("parameters.n", "must be 1 to 16, got 99"))
    done = await call(gateway, "generate", "hi")
    assert done.exit_code == 1
    assert "parameters.n: must be 1 to 16, got 99" in done.stderr
    assert "Traceback" not in done.output


def full_status() -> ops_service_pb2.GetClusterStatusResponse:
    """A status with every kind of entry."""
    return ops_service_pb2.GetClusterStatusResponse(
        version="0.1",
        gateway_id="gateway-1",
        pools=[ops_service_pb2.PoolStatus(kind=ops_service_pb2.POOL_KIND_GENERATION, ready_replicas=2, outstanding_tokens=12_345)],
        replicas=[
            ops_service_pb2.ReplicaStatus(
                replica_id=f"replica-{state}",
                pool=ops_service_pb2.POOL_KIND_GENERATION,
                model="m",
                state=state,
                running_requests=3,
                kv_usage_fraction=0.25,
                output_tokens_per_second=1234.5,
            )
            for state in (ops_service_pb2.REPLICA_STATE_READY, ops_service_pb2.REPLICA_STATE_DRAINING)
        ],
        gateways=[ops_service_pb2.GatewayStatus(gateway_id="gateway-1", requests_in_flight=7)],
        conditions=[ops_service_pb2.Condition(reason="ROUTER_DOWN", message="the router is away")],
    )


async def test_status_shows_pools_replicas_gateways_and_conditions(gateway: ScriptedGateway) -> None:
    gateway.status = full_status()
    shown = (await call(gateway, "status")).stdout
    for text in ("ROUTER_DOWN: the router is away", "12,345", "replica-1", "ready", "replica-2", "draining", "0.25", "gateway-1"):
        assert text in shown
    assert json.loads((await call(gateway, "status", "--json")).stdout)["gateways"][0]["requests_in_flight"] == 7


async def test_status_watch_continues_until_interrupted(gateway: ScriptedGateway) -> None:
    gateway.status = full_status()
    gateway.script("GetClusterStatus", ServeError(Reason.DRAINING, "the gateway is going"))
    process = await start("status", "--watch", "--interval", "0.1", "--address", gateway.address)
    await gateway.wait_for_calls(3)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"ROUTER_DOWN" in out


async def test_top_shows_tenants_until_interrupted(gateway: ScriptedGateway) -> None:
    gateway.status = full_status()
    gateway.status.tenants.add(tenant="acme", running_requests=3, waiting_tokens=1_234)
    process = await start("top", "--interval", "0.1", "--address", gateway.address)
    await gateway.wait_for_calls(3)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"acme" in out
    assert b"1,234" in out


def test_status_that_cannot_be_read_says_why() -> None:
    said = io.StringIO()
    Console(file=said).print(missing_view(ServeError(Reason.NO_READY_REPLICA, "gone")))
    assert "gone" in said.getvalue()


def test_status_of_an_empty_cluster_can_be_shown() -> None:
    from neox_serve.client import ClusterStatus

    Console(file=io.StringIO()).print(status_view(ClusterStatus("1", "g", (), (), (), ())))


async def test_interrupted_stream_cancels_the_call_and_exits_with_130(gateway: ScriptedGateway) -> None:
    gateway.script("StreamGenerate", gateway.hang)
    process = await start("generate", "a b", "--stream", "--address", gateway.address)
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.read(1), 20) == b"A"
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, err) == (130, b"")
    await asyncio.wait_for(gateway.cancelled.wait(), 20)


async def test_interrupted_unary_call_is_cancelled(gateway: ScriptedGateway) -> None:
    gateway.script("Generate", gateway.hang)
    process = await start("generate", "a b", "--address", gateway.address)
    await gateway.wait_for_calls(1)
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, err) == (130, b"")
    await asyncio.wait_for(gateway.cancelled.wait(), 20)


async def test_closed_output_pipe_ends_the_command_quietly(gateway: ScriptedGateway) -> None:
    text = " ".join(["word"] * 20_000)
    process = await start("generate", "-", "--stream", "--address", gateway.address)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(text.encode())
    process.stdin.write_eof()
    await asyncio.wait_for(process.stdout.read(4), 20)
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    _, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert err == b""


@pytest.fixture
def metrics_page() -> Iterator[str]:
    """A server with a metrics page. Returns its URL."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(b"up 1\n")

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_metrics_prints_the_page(metrics_page: str) -> None:
    port = metrics_page.rpartition(":")[2]
    assert CliRunner().invoke(app, ["metrics"], env={"NEOX_SERVE_METRICS__PORT": port}).stdout == "up 1\n"
    assert CliRunner().invoke(app, ["metrics", "--url", f"{metrics_page}/metrics"]).stdout == "up 1\n"


def test_metrics_that_are_disabled_or_missing_are_an_error(metrics_page: str) -> None:
    off = CliRunner().invoke(app, ["metrics"], env={"NEOX_SERVE_METRICS__ENABLED": "false"})
    assert (off.exit_code, "metrics.enabled" in off.stderr) == (1, True)
    away = CliRunner().invoke(app, ["metrics", "--url", f"{metrics_page}/other"])
    assert (away.exit_code, "404" in away.stderr) == (1, True)
