"""Clients and the command over TLS, with and without a certificate of their own."""

import asyncio
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from neox_serve.client import AsyncClient, Client, Tls
from neox_serve.core.errors import ServeError
from tests.fakes.certificates import Pair, make_authority
from tests.fakes.scripted_gateway import ScriptedGateway


def server(root: Path, pair: Pair, *, mutual: bool) -> ScriptedGateway:
    """A gateway that speaks TLS; mutual: it asks for the client's certificate."""
    files = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    credentials = grpc.ssl_server_credentials(files, root.read_bytes() if mutual else None, require_client_auth=mutual)
    return ScriptedGateway(credentials=credentials)


async def test_tls_with_the_right_root_succeeds(tmp_path: Path) -> None:
    root, pair = make_authority(tmp_path)
    tls = Tls(root_ca=root, server_name="neox.test")
    async with server(root, pair, mutual=False) as gateway, AsyncClient(gateway.address, tls=tls) as client:
        assert (await client.generate("hi", timeout_s=20)).text == "HI"
        with Client(gateway.address, tls=tls) as blocking:
            assert (await asyncio.to_thread(blocking.generate, "hi", timeout_s=20)).text == "HI"


async def test_tls_that_requires_a_client_certificate_refuses_calls_without_one(tmp_path: Path) -> None:
    root, pair = make_authority(tmp_path)
    own = Tls(root, pair.certificate, pair.key, server_name="neox.test")
    async with server(root, pair, mutual=True) as gateway:
        async with AsyncClient(gateway.address, tls=own) as client:
            assert (await client.generate("hi", timeout_s=20)).text == "HI"
        async with AsyncClient(gateway.address, tls=Tls(root, server_name="neox.test")) as stranger:
            with pytest.raises(ServeError) as caught:
                await stranger.generate("hi", timeout_s=20)
    assert "unreachable" in caught.value.metadata


@pytest.mark.parametrize("wrong", ["another root", "plain text"])
async def test_tls_with_the_wrong_credentials_fails(tmp_path: Path, wrong: str) -> None:
    root, pair = make_authority(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = make_authority(tmp_path / "other")
    tls = Tls(other, server_name="neox.test") if wrong == "another root" else None
    async with server(root, pair, mutual=False) as gateway, AsyncClient(gateway.address, tls=tls) as client:
        with pytest.raises(ServeError) as caught:
            await client.generate("hi", timeout_s=20)
    assert "unreachable" in caught.value.metadata


async def test_command_uses_tls(tmp_path: Path) -> None:
    root, pair = make_authority(tmp_path, hosts=("localhost",))
    async with server(root, pair, mutual=True) as gateway:
        port = gateway.address.rpartition(":")[2]
        files = ["--tls-ca", str(root), "--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key)]
        arguments = ["generate", "hi", "--address", f"localhost:{port}", *files]
        done = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert (done.exit_code, done.stdout) == (0, "HI\n"), done.output
