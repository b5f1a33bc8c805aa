"""Authentication over a real port: keys, tokens, certificates and roles, and calls whose key is revoked."""

import asyncio
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from neox_serve.client import AsyncClient, StreamFinal, Tls
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.tenants import PriorityClass, Role, Tenant
from neox_serve.settings import restore
from neox_serve.settings.cluster import LogSettings
from neox_serve.telemetry import logs
from neox_serve.tenancy.platform import Platform
from neox_serve.v1 import admin_service_pb2 as pb
from neox_serve.v1 import generation_pb2, inference_service_pb2
from neox_serve.v1.inference_service_pb2_grpc import InferenceServiceStub
from neox_serve.wire.status import from_rpc_error
from tests.fakes.certificates import Authority
from tests.fakes.gateways import running_gateway
from tests.fakes.scripted_dispatcher import Script, ScriptedDispatcher

CLOSED: dict[str, Any] = {"allow_anonymous": False}
SLOW = Script(tokens=None, interval_s=0.02)
PROMPT = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[5]))


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    opened = await Platform.open(restore({"state_folder": str(tmp_path)}), "gateway-under-test")
    yield opened
    await opened.close()


@pytest.fixture
def dispatcher() -> ScriptedDispatcher:
    return ScriptedDispatcher()


async def make(platform: Platform, tenant: Tenant, *certificates: str) -> str:
    """Creates a tenant and returns an API key of it."""
    platform.tenants.add(tenant, "test", certificates)
    made, _ = platform.tenants.add_key(tenant.name, "test")
    await platform.directory.refresh()
    return made.text


@asynccontextmanager
async def closed_gateway(dispatcher: ScriptedDispatcher, platform: Platform, **access: Any) -> AsyncIterator[str]:
    """Returns the address of a gateway that requires a credential."""
    async with running_gateway(dispatcher, platform=platform, access={**CLOSED, **access}) as server:
        yield f"127.0.0.1:{server.port}"


async def refused(reason: Reason, call: Any) -> ServeError:
    with pytest.raises(ServeError) as caught:
        await call
    assert caught.value.reason is reason
    return caught.value


async def succeeds(call: Any) -> bool:
    try:
        await call
    except ServeError:
        return False
    return True


async def test_caller_without_a_credential_is_told_how_to_authenticate(dispatcher: ScriptedDispatcher, platform: Platform) -> None:
    async with closed_gateway(dispatcher, platform) as address, AsyncClient(address) as client:
        for call in (client.generate("a"), client.embed("a"), client.tokenize("a"), client.models(), client.status()):
            error = await refused(Reason.UNAUTHENTICATED, call)
            assert "authorization: Bearer" in error.message
        assert await client.health() == "SERVING"


async def test_key_allows_only_the_calls_of_its_role(dispatcher: ScriptedDispatcher, platform: Platform) -> None:
    keys = {role: await make(platform, Tenant(role.value, role=role)) for role in Role}
    allowed = {
        "generate": {Role.TENANT},
        "embed": {Role.TENANT},
        "tokenize": {Role.TENANT},
        "models": set(Role),
        "status": {Role.OPERATOR, Role.ADMIN},
        "admin": {Role.ADMIN},
    }
    async with closed_gateway(dispatcher, platform) as address:
        for role, key in keys.items():
            async with AsyncClient(address, api_key=key) as client:
                calls = {
                    "generate": client.generate("a"),
                    "embed": client.embed("a"),
                    "tokenize": client.tokenize("a"),
                    "models": client.models(),
                    "status": client.status(),
                    "admin": client.admin(pb.ListTenantsRequest()),
                }
                for name, call in calls.items():
                    if role in allowed[name]:
                        await call
                    else:
                        await refused(Reason.PERMISSION_DENIED, call)


@pytest.mark.parametrize(
    "values",
    [["Bearer nxs_wrong"], ["Basic abc"], ["Bearer"], [""], ["Bearer a", "Bearer b"], ["Bearer " + "x" * 9_000]],
    ids=["wrong", "another scheme", "empty", "nothing", "two", "oversized"],
)
async def test_invalid_credential_is_refused_even_if_none_is_required(
    dispatcher: ScriptedDispatcher, platform: Platform, values: list[str]
) -> None:
    async with running_gateway(dispatcher, platform=platform) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            request = inference_service_pb2.GenerateRequest(prompts=[PROMPT])
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await InferenceServiceStub(channel).Generate(request, metadata=tuple(("authorization", value) for value in values))
        assert from_rpc_error(caught.value).reason is Reason.UNAUTHENTICATED
        async with AsyncClient(f"127.0.0.1:{server.port}") as client:
            await client.generate("a")


async def test_change_of_a_tenant_takes_effect_within_a_second(dispatcher: ScriptedDispatcher, platform: Platform) -> None:
    key = await make(platform, Tenant("acme"))
    async with closed_gateway(dispatcher, platform) as address, AsyncClient(address, api_key=key) as client:
        await client.generate("a")
        platform.tenants.change(Tenant("acme", enabled=False), "test")
        began_s = time.monotonic()
        while await succeeds(client.generate("a")):
            assert time.monotonic() - began_s < 1.0


async def test_stream_whose_key_is_revoked_ends_and_frees_its_engine(dispatcher: ScriptedDispatcher, platform: Platform) -> None:
    dispatcher.script = SLOW
    key = await make(platform, Tenant("acme"))
    async with closed_gateway(dispatcher, platform) as address, AsyncClient(address, api_key=key) as client:
        stream = aiter(client.stream("a", max_tokens=100))
        await anext(stream)
        platform.tenants.revoke_key(key.split("_")[1], "test")
        began_s = time.monotonic()
        with pytest.raises(ServeError) as caught:
            async for _ in stream:
                pass
        assert caught.value.reason is Reason.UNAUTHENTICATED
        assert time.monotonic() - began_s < 1.5
        assert not dispatcher.live


async def test_tenant_sees_only_the_models_and_adapters_it_may_use(dispatcher: ScriptedDispatcher, platform: Platform) -> None:
    some = await make(platform, Tenant("some", adapters=frozenset({"mine"})))
    none = await make(platform, Tenant("none", models=frozenset({"another"})))
    model = {"adapters": [{"name": name, "path": f"/adapters/{name}"} for name in ("mine", "yours")]}
    settings: dict[str, Any] = {"access": CLOSED, "model": model}
    async with running_gateway(dispatcher, platform=platform, **settings) as server:
        address = f"127.0.0.1:{server.port}"
        async with AsyncClient(address, api_key=some) as client:
            assert [one.adapters for one in await client.models()] == [("mine",)]
            await client.generate("a", adapter="mine")
            yours = await refused(Reason.UNKNOWN_ADAPTER, client.generate("a", adapter="yours"))
            unknown = await refused(Reason.UNKNOWN_ADAPTER, client.generate("a", adapter="nothing"))
            assert yours.message.replace("yours", "x") == unknown.message.replace("nothing", "x")
        async with AsyncClient(address, api_key=none) as client:
            assert await client.models() == ()
            for call in (client.generate("a"), client.embed("a"), client.model("neox-small")):
                await refused(Reason.UNKNOWN_MODEL, call)


async def test_class_above_the_ceiling_is_lowered_and_reported(dispatcher: ScriptedDispatcher, platform: Platform) -> None:
    key = await make(platform, Tenant("acme", class_ceiling=PriorityClass.DEFAULT))
    async with closed_gateway(dispatcher, platform) as address, grpc.aio.insecure_channel(address) as channel:
        for requested, lowered in ((generation_pb2.PRIORITY_CLASS_SYSTEM, "default"), (generation_pb2.PRIORITY_CLASS_BULK, None)):
            request = inference_service_pb2.GenerateRequest(prompts=[PROMPT], priority=requested)
            call = InferenceServiceStub(channel).Generate(request, metadata=(("authorization", f"Bearer {key}"),))
            await call
            trailing: dict[str, Any] = dict(await call.trailing_metadata())
            assert trailing.get("neox-priority") == lowered


async def test_token_of_an_identity_provider_authenticates_its_tenant(
    dispatcher: ScriptedDispatcher, platform: Platform, tmp_path: Path
) -> None:
    await make(platform, Tenant("acme"))
    key = ec.generate_private_key(ec.SECP256R1())
    keys = tmp_path / "jwks.json"
    await asyncio.to_thread(
        keys.write_text, json.dumps({"keys": [ECAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "k", "alg": "ES256"}]})
    )
    claims = {"iss": "https://id", "aud": "neox", "sub": "jane", "tenant": "acme", "exp": time.time() + 60}
    tokens = {name: jwt.encode(claims | {"tenant": name}, key, "ES256", headers={"kid": "k"}) for name in ("acme", "nobody")}
    provider = {"jwks": str(keys), "issuer": "https://id", "audience": "neox"}
    async with closed_gateway(dispatcher, platform, jwt=provider) as address:
        async with AsyncClient(address, api_key=tokens["acme"]) as client:
            await client.generate("a")
        async with AsyncClient(address, api_key=tokens["nobody"]) as client:
            await refused(Reason.UNAUTHENTICATED, client.generate("a"))


async def test_client_certificate_authenticates_its_tenant(dispatcher: ScriptedDispatcher, platform: Platform, tmp_path: Path) -> None:
    await make(platform, Tenant("acme"), "acme.example")
    authority = Authority(tmp_path)
    server_pair = authority.issue("server")
    gateway = {"tls_certificate": str(server_pair.certificate), "tls_key": str(server_pair.key), "tls_client_ca": str(authority.root)}
    known, stranger = (authority.issue(name, (f"{name}.example",)) for name in ("acme", "stranger"))
    late = authority.issue("late", ("acme.example",), lifetime=timedelta(minutes=-1))
    async with running_gateway(dispatcher, platform=platform, access=CLOSED, gateway=gateway) as server:
        for pair, reason in ((known, None), (stranger, Reason.UNAUTHENTICATED), (late, Reason.NO_READY_REPLICA)):
            tls = Tls(authority.root, pair.certificate, pair.key, server_name="neox.test")
            async with AsyncClient(f"127.0.0.1:{server.port}", tls=tls) as client:
                if reason is None:
                    await client.generate("a")
                else:
                    await refused(reason, client.generate("a", timeout_s=5))


async def test_certificates_are_replaced_under_load_without_a_failed_call(dispatcher: ScriptedDispatcher, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    gateway = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    calls = 0
    async with running_gateway(dispatcher, gateway=gateway) as server:
        address, tls = f"127.0.0.1:{server.port}", Tls(authority.root, server_name="neox.test")
        before = await _served_certificate(server.port)
        stop = asyncio.Event()

        async def load() -> None:
            nonlocal calls
            while not stop.is_set():
                async with AsyncClient(address, tls=tls) as client:
                    for _ in range(5):
                        await client.generate("a")
                        calls += 1

        workers = [asyncio.create_task(load()) for _ in range(8)]
        for _ in range(3):
            authority.issue("server")
            await _until_another_certificate(server.port, before)
            before = await _served_certificate(server.port)
        pair.certificate.write_bytes(b"half a certificate")
        await asyncio.sleep(1.2)
        assert await _served_certificate(server.port) == before
        stop.set()
        await asyncio.gather(*workers)
    assert calls > 100


async def _served_certificate(port: int) -> bytes:
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    assert isinstance(shown, bytes)
    return shown


async def _until_another_certificate(port: int, before: bytes) -> None:
    async with asyncio.timeout(5):
        while await _served_certificate(port) == before:  # noqa: ASYNC110 - polls the server
            await asyncio.sleep(0.05)


async def test_usage_of_every_call_is_recorded_and_verifies(dispatcher: ScriptedDispatcher, platform: Platform) -> None:
    key, boss = await make(platform, Tenant("acme")), await make(platform, Tenant("boss", role=Role.ADMIN))
    dispatcher.script = Script(tokens=4)
    async with closed_gateway(dispatcher, platform) as address:
        async with AsyncClient(address, api_key=key) as client:
            unary = await client.generate(["ab", "abc"])
            events = [event async for event in client.stream("ab")]
            embedded = await client.embed("ab")
            await refused(Reason.INVALID_ARGUMENT, client.generate("ab", temperature=9.0))
        final = events[-1]
        assert isinstance(final, StreamFinal)
        usages = [unary.usage, final.usage, embedded.usage]
        async with AsyncClient(address, api_key=boss) as client:
            async with asyncio.timeout(10):
                while not (sums := (await client.admin(pb.GetUsageRequest())).sums) or sums[0].requests < 4:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert [(one.tenant, one.requests, one.failed_requests) for one in sums] == [("acme", 4, 1)]
            assert sums[0].prompt_tokens == sum(usage.prompt_tokens for usage in usages)
            assert sums[0].completion_tokens == sum(usage.completion_tokens for usage in usages)
            verified = await client.admin(pb.VerifyUsageRequest())
            assert (verified.records, list(verified.breaks)) == (4, [])


async def test_admin_manages_tenants_over_grpc(dispatcher: ScriptedDispatcher, platform: Platform) -> None:
    boss = await make(platform, Tenant("boss", role=Role.ADMIN))
    async with closed_gateway(dispatcher, platform) as address, AsyncClient(address, api_key=boss) as admin:
        tenant = pb.Tenant(name="acme", adapters=pb.Names(), quotas=pb.Quotas(tokens_per_minute=7))
        made = (await admin.admin(pb.CreateTenantRequest(tenant=tenant))).tenant
        assert (made.weight, made.role, made.HasField("models"), made.HasField("adapters")) == (1.0, pb.ROLE_TENANT, False, True)
        made.disabled = True
        assert (await admin.admin(pb.UpdateTenantRequest(tenant=made))).tenant == made
        made.disabled = False
        await admin.admin(pb.UpdateTenantRequest(tenant=made))
        first = await admin.admin(pb.CreateKeyRequest(tenant="acme", label="ci"))
        second = await admin.admin(pb.RotateKeyRequest(tenant="acme"))
        listed = (await admin.admin(pb.ListKeysRequest(tenant="acme"))).keys
        assert [(key.key_id, key.HasField("revoke_time")) for key in listed] == [(first.key.key_id, True), (second.key.key_id, False)]
        async with AsyncClient(address, api_key=second.secret) as client:
            await client.generate("a")
        async with AsyncClient(address, api_key=first.secret) as client:
            await refused(Reason.UNAUTHENTICATED, client.generate("a"))
        pages = [await admin.admin(pb.ListTenantsRequest(page_size=1))]
        pages.append(await admin.admin(pb.ListTenantsRequest(page_size=1, page_token=pages[0].next_page_token)))
        assert [[one.name for one in page.tenants] for page in pages] == [["acme"], ["boss"]]
        assert pages[1].next_page_token == ""
        entries = (await admin.admin(pb.ListAuditEntriesRequest(page_size=2))).entries
        assert [(entry.action, entry.actor.split(" ")[0]) for entry in entries] == [("key.rotate", "boss"), ("key.add", "boss")]


async def test_invalid_admin_fields_are_all_named(dispatcher: ScriptedDispatcher, platform: Platform) -> None:
    boss = await make(platform, Tenant("boss", role=Role.ADMIN))
    wrong = pb.Tenant(name="No Name!", role=9, weight=-1.0, class_ceiling=9, quotas=pb.Quotas(tokens_per_day=2**63))  # type: ignore[arg-type]
    async with closed_gateway(dispatcher, platform) as address, AsyncClient(address, api_key=boss) as admin:
        error = await refused(Reason.INVALID_ARGUMENT, admin.admin(pb.CreateTenantRequest(tenant=wrong)))
        fields = ["name", "role", "class_ceiling", "weight", "quotas.tokens_per_day"]
        assert [one.field for one in error.violations] == [f"tenant.{field}" for field in fields]
        for request in (pb.GetTenantRequest(name="'; DROP TABLE tenants"), pb.ListKeysRequest(tenant='" OR ""="'), pb.CreateKeyRequest()):
            await refused(Reason.INVALID_ARGUMENT, admin.admin(request))
        await refused(Reason.INVALID_ARGUMENT, admin.admin(pb.ListTenantsRequest(page_size=1_001)))


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Collects everything that this process logs, at the most verbose level."""
    root = logging.getLogger()
    handlers, level, stream = root.handlers, root.level, io.StringIO()
    logs.configure(LogSettings(level="debug"), "all", stream)
    yield stream
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


async def test_secrets_are_never_in_logs_or_errors(dispatcher: ScriptedDispatcher, platform: Platform, written: io.StringIO) -> None:
    good, boss = await make(platform, Tenant("acme")), await make(platform, Tenant("boss", role=Role.ADMIN))
    bad = good[:-4] + "0000"
    reported: list[str] = []
    async with closed_gateway(dispatcher, platform) as address:
        for key in (good, bad):
            async with AsyncClient(address, api_key=key) as client:
                wrong = client.generate("a", temperature=9.0)
                for call in (client.generate("a"), wrong, client.status(), client.admin(pb.ListTenantsRequest())):
                    try:
                        reported.append(repr(await call))
                    except ServeError as error:
                        reported.append(repr(error))
        async with AsyncClient(address, api_key=boss) as admin:
            made = await admin.admin(pb.CreateKeyRequest(tenant="acme"))
            reported += [str(await admin.admin(request)) for request in (pb.ListKeysRequest(tenant="acme"), pb.ListAuditEntriesRequest())]
    everything = "".join([written.getvalue(), *reported])
    assert "UNAUTHENTICATED" in written.getvalue()
    for key in (good, bad, boss, made.secret):
        assert key.rsplit("_", 1)[1] not in everything
    assert all(key.secret_hash not in everything for key in platform.tenants.directory().keys.values())
