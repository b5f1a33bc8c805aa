"""The gateway as a gRPC server: health, reflection, TLS, keepalive, many and slow clients, and gRPC's own interoperability cases."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Pool
from neox_serve.gateway.server.health import INFERENCE, MODELS, OPS, TOKENS
from neox_serve.gateway.server.server import GatewayServer
from neox_serve.settings import SettingsError
from neox_serve.v1 import generation_pb2, inference_service_pb2, model_service_pb2, token_service_pb2
from neox_serve.wire.status import from_rpc_error
from tests.fakes.gateways import Stubs, connected, running_gateway
from tests.fakes.scripted_dispatcher import Script, ScriptedDispatcher

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SMALL_WINDOW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
PROMPT = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5]))
REQUEST = inference_service_pb2.StreamGenerateRequest(prompt=PROMPT)


@pytest.fixture
def dispatcher() -> ScriptedDispatcher:
    return ScriptedDispatcher()


@pytest.fixture
async def server(dispatcher: ScriptedDispatcher) -> AsyncIterator[GatewayServer]:
    async with running_gateway(dispatcher) as server:
        yield server


@pytest.fixture
async def stubs(server: GatewayServer) -> AsyncIterator[Stubs]:
    async with connected(server.port) as stubs:
        yield stubs


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition changes in the server
            await asyncio.sleep(0.002)


def health_stub(stubs: Stubs) -> Any:
    return health_pb2_grpc.HealthStub(stubs.channel)


async def state(stubs: Stubs, service: str) -> int:
    response = await health_stub(stubs).Check(health_pb2.HealthCheckRequest(service=service))
    return int(response.status)


async def state_becomes(stubs: Stubs, service: str, expected: int) -> None:
    async with asyncio.timeout(20):
        while await state(stubs, service) != expected:  # noqa: ASYNC110 - polls the server
            await asyncio.sleep(0.01)


async def test_health_of_a_service_follows_the_pool_it_needs(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    for service in ("", INFERENCE, TOKENS, MODELS, OPS):
        assert await state(stubs, service) == SERVING
    dispatcher.ready[Pool.EMBEDDING] = 0
    await state_becomes(stubs, f"{INFERENCE}/Embed", NOT_SERVING)
    assert await state(stubs, INFERENCE) == NOT_SERVING
    assert await state(stubs, f"{INFERENCE}/Generate") == SERVING
    assert await state(stubs, "") == SERVING
    dispatcher.ready[Pool.GENERATION] = 0
    await state_becomes(stubs, "", NOT_SERVING)
    assert await state(stubs, TOKENS) == SERVING
    dispatcher.ready.update({Pool.GENERATION: 2, Pool.EMBEDDING: 1})
    await state_becomes(stubs, INFERENCE, SERVING)


async def test_health_of_an_unknown_service_is_not_found(stubs: Stubs) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await state(stubs, "no.such.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_watch_reports_every_change_and_the_drain(server: GatewayServer, stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    call = health_stub(stubs).Watch(health_pb2.HealthCheckRequest(service=INFERENCE))
    states = aiter(call)
    assert (await anext(states)).status == SERVING
    dispatcher.ready[Pool.GENERATION] = 0
    assert (await anext(states)).status == NOT_SERVING
    dispatcher.ready[Pool.GENERATION] = 1
    assert (await anext(states)).status == SERVING
    await server.drain(1)
    assert (await anext(states)).status == NOT_SERVING
    call.cancel()


async def test_health_with_the_router_down_stays_serving_and_reports_the_condition(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.router_connected = False
    call = health_stub(stubs).Check(health_pb2.HealthCheckRequest())
    assert (await call).status == SERVING
    assert ("neox-condition", "ROUTER_DOWN") in list(await call.trailing_metadata())


async def test_drained_gateway_still_answers_operators(server: GatewayServer, stubs: Stubs) -> None:
    await server.drain(1)
    assert await state(stubs, "") == NOT_SERVING
    assert (await stubs.models.ListModels(model_service_pb2.ListModelsRequest())).models
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.tokens.Tokenize(token_service_pb2.TokenizeRequest(texts=["a"]))
    assert from_rpc_error(caught.value).reason is Reason.DRAINING


async def test_reflection_lists_every_service_and_its_file(stubs: Stubs) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast("Any", stubs.channel))

    async def ask(request: Any) -> Any:
        call = stub.ServerReflectionInfo(iter([request]))
        (answer,) = [response async for response in call]
        return answer

    listed = await ask(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {INFERENCE, TOKENS, MODELS, OPS, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    for name in names:
        answer = await ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
        assert answer.file_descriptor_response.file_descriptor_proto


# Many and slow clients


async def test_two_thousand_streams_at_once_are_served_or_refused_with_a_reason(dispatcher: ScriptedDispatcher) -> None:
    cap, streams = 500, 2000
    gate = asyncio.Event()
    dispatcher.script = Script(tokens=3, interval_s=0.05, gate=gate)
    async with running_gateway(dispatcher, gateway={"max_concurrent_requests": cap}) as server, connected(server.port) as stubs:
        calls = [asyncio.ensure_future(_outcome(stubs)) for _ in range(streams)]
        await until(lambda: sum(call.done() for call in calls) == streams - cap, 60)
        assert server.requests_in_flight == cap
        gate.set()
        outcomes = await asyncio.gather(*calls)
        assert (outcomes.count("final"), outcomes.count(Reason.OVERLOADED)) == (cap, streams - cap)
        assert server.requests_in_flight == 0
        assert await _outcome(stubs) == "final"
    assert not dispatcher.live


async def _outcome(stubs: Stubs) -> str:
    try:
        events = [event async for event in stubs.inference.StreamGenerate(REQUEST, timeout=120)]
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason
    return str(events[-1].WhichOneof("event"))


async def test_client_that_never_reads_loses_its_call_while_others_are_served(dispatcher: ScriptedDispatcher) -> None:
    dispatcher.scripts = {5: Script(tokens=None, text="x" * 2000, interval_s=0.001)}
    dispatcher.script = Script(tokens=20, interval_s=0.01)
    healthy = inference_service_pb2.StreamGenerateRequest(prompt=generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[6])))
    async with (
        running_gateway(dispatcher, gateway={"stalled_client_timeout_s": 0.5}) as server,
        connected(server.port, *SMALL_WINDOW) as lazy,
        connected(server.port) as stubs,
    ):
        stalled = lazy.inference.StreamGenerate(REQUEST)
        await until(lambda: bool(dispatcher.streams))
        for _ in range(3):
            events = [event async for event in stubs.inference.StreamGenerate(healthy)]
            assert len(events) == 21
        await until(lambda: not dispatcher.live)
        await until(lambda: server.requests_in_flight == 0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stalled:
                pass
        error = from_rpc_error(caught.value)
        assert error.reason is Reason.CANCELLED
        assert "read nothing for 0.5 s" in error.message


async def test_slow_client_gets_fewer_larger_chunks_and_the_whole_text(dispatcher: ScriptedDispatcher) -> None:
    tokens = 1500
    dispatcher.script = Script(tokens=tokens, text="é" * 500)
    async with running_gateway(dispatcher) as server, connected(server.port, *SMALL_WINDOW) as stubs:
        call = stubs.inference.StreamGenerate(REQUEST)
        await until(lambda: bool(dispatcher.streams) and not dispatcher.live)
        await asyncio.sleep(0.1)
        events = [event async for event in call]
    chunks = [event.chunk for event in events[:-1]]
    assert "".join(chunk.text for chunk in chunks) == "é" * 500 * tokens
    assert [token_id for chunk in chunks for token_id in chunk.token_ids] == list(range(tokens))
    assert len(chunks) < tokens
    assert events[-1].final.usage.completion_tokens == tokens


# Keepalive


async def test_silent_generation_survives_its_clients_pings(dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(tokens=2, first_s=17.0)
    options = (
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 2_000),
        ("grpc.http2.max_pings_without_data", 0),
    )
    async with running_gateway(dispatcher) as server, connected(server.port, *options) as stubs:
        events = [event async for event in stubs.inference.StreamGenerate(REQUEST)]
        assert events[-1].WhichOneof("event") == "final"


# gRPC's interoperability cases


async def test_large_unary(stubs: Stubs) -> None:
    text = "0123456789abcdef" * 17_000  # a little more than the 271,828 bytes of the interoperability case
    response = await stubs.tokens.Tokenize(token_service_pb2.TokenizeRequest(texts=[text]))
    back = await stubs.tokens.Detokenize(
        token_service_pb2.DetokenizeRequest(sequences=[generation_pb2.TokenIds(ids=response.results[0].token_ids)])
    )
    assert back.texts[0] == text


async def test_cancel_after_begin(server: GatewayServer, stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(silent=True)
    call = stubs.inference.StreamGenerate(REQUEST)
    await until(lambda: bool(dispatcher.opened))
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED
    await until(lambda: server.requests_in_flight == 0)


async def test_cancel_after_first_response(server: GatewayServer, stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(tokens=None, interval_s=0.01)
    call = stubs.inference.StreamGenerate(REQUEST)
    await anext(aiter(call))
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED
    await until(lambda: server.requests_in_flight == 0)


async def test_timeout_on_sleeping_server(server: GatewayServer, stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(silent=True)
    call = stubs.inference.StreamGenerate(REQUEST, timeout=0.05)
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: server.requests_in_flight == 0)


async def test_unimplemented_method_and_service(stubs: Stubs) -> None:
    for path in (f"/{INFERENCE}/NoSuchMethod", "/no.such.Service/Method"):
        method: Any = stubs.channel.unary_unary(path)
        assert await method(b"").code() is grpc.StatusCode.UNIMPLEMENTED


async def test_special_status_message(stubs: Stubs, dispatcher: ScriptedDispatcher) -> None:
    text = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
    dispatcher.script = Script(refusal=ServeError(Reason.OVERLOADED, text))
    call = stubs.inference.StreamGenerate(REQUEST)
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert await call.details() == text


async def test_metrics_count_calls_and_tokens(server: GatewayServer, stubs: Stubs) -> None:
    _ = [event async for event in stubs.inference.StreamGenerate(REQUEST)]
    with pytest.raises(grpc.aio.AioRpcError):
        await stubs.inference.Generate(inference_service_pb2.GenerateRequest())
    text = server.metrics_text()
    stream, unary = f"/{INFERENCE}/StreamGenerate", f"/{INFERENCE}/Generate"
    assert f'neox_serve_gateway_calls_total{{code="OK",method="{stream}",reason=""}} 1.0' in text
    assert f'neox_serve_gateway_calls_total{{code="INVALID_ARGUMENT",method="{unary}",reason="INVALID_ARGUMENT"}} 1.0' in text
    assert 'neox_serve_gateway_tokens_total{kind="completion"} 3.0' in text
    assert f'neox_serve_gateway_time_to_first_token_seconds_count{{method="{stream}"}} 1.0' in text
    assert f'neox_serve_gateway_time_per_output_token_seconds_count{{method="{stream}"}} 1.0' in text
    assert 'neox_serve_gateway_ready_replicas{pool="generation"} 1.0' in text


# TLS


class Authority:
    """A certificate authority and the certificates it signs, in files."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign(name, self._key, authority=True)
        self.path = self._write(f"{name}.pem", self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, common_name: str) -> tuple[Path, Path]:
        """Returns the certificate and key of a new identity."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(common_name, key, authority=False)
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return (
            self._write(f"{self._name}-{common_name}.pem", certificate.public_bytes(encoding)),
            self._write(f"{self._name}-{common_name}.key", key.private_bytes(encoding, form, serialization.NoEncryption())),
        )

    def _sign(self, common_name: str, key: ec.EllipticCurvePrivateKey, *, authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(_name(self._name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(data)
        return path


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


async def _tokenizes(port: int, credentials: grpc.ChannelCredentials | None) -> bool:
    """Returns whether a client with these credentials is served; None means plain text."""
    address, options = f"localhost:{port}", [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.secure_channel(address, credentials, options) if credentials else grpc.aio.insecure_channel(address, options)
    async with channel:
        try:
            await Stubs.on(channel).tokens.Tokenize(token_service_pb2.TokenizeRequest(texts=["a"]), timeout=5)
        except grpc.aio.AioRpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise
            return False
    return True


@pytest.mark.parametrize(
    ("server_wants", "client_shows", "served"),
    [
        ("plain", "plain", True),
        ("plain", "tls", False),
        ("tls", "plain", False),
        ("tls", "tls", True),
        ("tls", "wrong authority", False),
        ("mutual", "tls", False),
        ("mutual", "certificate", True),
        ("mutual", "foreign certificate", False),
        ("mutual", "plain", False),
    ],
)
async def test_tls_matrix(server_wants: str, client_shows: str, served: bool, tmp_path: Path) -> None:
    ours, foreign = Authority(tmp_path, "ours"), Authority(tmp_path, "foreign")
    certificate, key = ours.issue("localhost")
    gateway: dict[str, Any] = {} if server_wants == "plain" else {"tls_certificate": str(certificate), "tls_key": str(key)}
    if server_wants == "mutual":
        gateway["tls_client_ca"] = str(ours.path)
    pairs = {"certificate": ours.issue("client"), "foreign certificate": foreign.issue("client")}
    trusted = (foreign if client_shows == "wrong authority" else ours).path.read_bytes()
    shown = [path.read_bytes() for path in reversed(pairs[client_shows])] if client_shows in pairs else [None, None]
    credentials = None if client_shows == "plain" else grpc.ssl_channel_credentials(trusted, *shown)
    async with running_gateway(ScriptedDispatcher(), gateway=gateway) as server:
        assert await _tokenizes(server.port, credentials) is served


async def test_tls_file_that_cannot_be_read_names_its_setting(tmp_path: Path) -> None:
    missing = {"tls_certificate": str(tmp_path / "none.pem"), "tls_key": str(tmp_path / "none.key")}
    with pytest.raises(SettingsError, match=r"gateway\.tls_certificate"):
        async with running_gateway(ScriptedDispatcher(), gateway=missing):
            pass


async def test_two_gateways_share_a_port(dispatcher: ScriptedDispatcher, server: GatewayServer) -> None:
    async with running_gateway(dispatcher, gateway={"port": server.port}) as second:
        assert second.port == server.port
