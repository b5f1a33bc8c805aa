"""The internal links over mutual TLS: served with valid certificates, closed to all others, and renewed without a restart."""

import asyncio
from pathlib import Path

import grpc
import pytest

from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.internal.v1.router_link_pb2_grpc import RouterLinkServiceStub
from neox_serve.link.channels import LinkTls, internal_channel
from neox_serve.link.streams import StreamEndedError, read, write
from neox_serve.settings import SettingsError, restore
from neox_serve.wire import router_messages as wire
from tests.fakes.certificates import Authority
from tests.fakes.link_cluster import MODEL, LinkCluster, generation, read_all, text_of

NAME = "neox-serve"
TIMING = FakeTiming(ttft_s=0.001, itl_s=0.001)


def tls_of(authority: Authority, name: str = "link") -> LinkTls:
    pair = authority.issue(name, (NAME,))
    return LinkTls(pair.certificate, pair.key, authority.root, NAME)


async def test_requests_are_served_over_mutual_tls_and_after_the_certificates_were_renewed(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    engine = FakeEngine(TIMING)
    async with LinkCluster(tls_of(authority)) as cluster:
        router = await cluster.router()
        await cluster.replica(engine)
        dispatcher = await cluster.dispatcher()
        first = text_of(await read_all(await dispatcher.open_generation(MODEL, generation(5))))
        tls_of(authority)  # in the same files
        await router.stop()
        await cluster.router()
        late = await cluster.dispatcher("late")
        assert text_of(await read_all(await late.open_generation(MODEL, generation(5)))) == first
    await engine.close()


@pytest.mark.parametrize("shown", ["nothing", "plain", "foreign", "another name"])
async def test_peer_without_a_valid_certificate_is_refused(tmp_path: Path, shown: str) -> None:
    ours, foreign = Authority(tmp_path), Authority(tmp_path, "foreign.pem")
    async with LinkCluster(tls_of(ours)) as cluster:
        router = await cluster.router()
        stranger = tls_of(foreign, "stranger")
        channels = {
            "plain": lambda: internal_channel(router.address),
            "nothing": lambda: grpc.aio.secure_channel(
                router.address,
                grpc.ssl_channel_credentials(ours.root.read_bytes()),
                options=(("grpc.ssl_target_name_override", NAME),),
            ),
            "foreign": lambda: internal_channel(router.address, LinkTls(stranger.certificate, stranger.key, ours.root, NAME)),
            "another name": lambda: internal_channel(router.address, LinkTls(*_pair(ours), ours.root, "other")),
        }
        async with channels[shown]() as channel:
            call = RouterLinkServiceStub(channel).ConnectGateway()
            with pytest.raises(StreamEndedError):
                await asyncio.wait_for(_hello(call), 10)
        assert router.state.gateway_count() == 0


def _pair(authority: Authority) -> tuple[Path, Path]:
    pair = authority.issue("named", (NAME,))
    return pair.certificate, pair.key


async def _hello(call: grpc.aio.StreamStreamCall[pb.ConnectGatewayRequest, pb.ConnectGatewayResponse]) -> None:
    await write(call, wire.gateway_hello("stranger", ()))
    await read(call, pb.ConnectGatewayResponse)


def test_incomplete_set_of_files_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"links: .*must be set together"):
        restore({"links": {"certificate": "/x.pem"}})
