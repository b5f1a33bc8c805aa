"""Calls that another gateway runs: this one gives its own to others, and gets theirs for its clients."""

from collections.abc import AsyncIterator
from typing import Any

from neox_serve.core.errors import ServeError
from neox_serve.gateway.server.repeats import Key, Repeats
from neox_serve.internal.v1 import gateway_link_pb2 as pb
from neox_serve.internal.v1.gateway_link_pb2_grpc import (
    GatewayLinkServiceServicer,
    GatewayLinkServiceStub,
    add_GatewayLinkServiceServicer_to_server,
)
from neox_serve.link.channels import LinkTls, bind, internal_channel, internal_server
from neox_serve.link.streams import StreamEndedError, read
from neox_serve.wire import router_messages as wire

_CLOSING_S = 0.5


class UnknownCallError(Exception):
    """The other gateway does not know the call, or is gone."""


class JoinServer(GatewayLinkServiceServicer):
    """Gives this gateway's calls to others. address: host:port, once it has started."""

    def __init__(self, repeats: Repeats, tls: LinkTls | None) -> None:
        self._repeats = repeats
        self._tls = tls
        self._server = internal_server()
        self.address = ""

    async def start(self, host: str) -> None:
        """Listens on any free port. Raises OSError where it cannot."""
        add_GatewayLinkServiceServicer_to_server(self, self._server)
        self.address = bind(self._server, host, 0, self._tls)
        await self._server.start()

    async def stop(self) -> None:
        """Ends what is being given."""
        await self._server.stop(_CLOSING_S)

    async def FollowCall(self, request: pb.FollowCallRequest, context: Any) -> AsyncIterator[pb.FollowCallResponse]:  # noqa: N802
        """The messages of a call, as they come; its failure where it fails, or where its message is another than the one asked for."""
        position = 0
        try:
            run = self._repeats.find((request.tenant, request.method, request.request_id), request.digest)
            if run is None:
                yield pb.FollowCallResponse(unknown=True)
                return
            while (message := await run.next(position)) is not None:
                yield pb.FollowCallResponse(message=message)
                position += 1
        except ServeError as error:
            yield pb.FollowCallResponse(failure=wire.refusal_to_proto(error))


async def joined(address: str, key: Key, digest: bytes, tls: LinkTls | None) -> AsyncIterator[bytes]:
    """The messages of a call that another gateway runs or ran. Raises ServeError as that does; UnknownCallError before the first one."""
    tenant, method, request_id = key
    request = pb.FollowCallRequest(tenant=tenant, method=method, request_id=request_id, digest=digest)
    async with internal_channel(address, tls) as channel:
        call, begun = GatewayLinkServiceStub(channel).FollowCall(request), False
        while True:
            try:
                response = await read(call, pb.FollowCallResponse)
            except StreamEndedError as ended:
                if begun:
                    return
                raise UnknownCallError from ended
            if response.HasField("failure"):
                raise wire.refusal_from_proto(response.failure)
            if response.HasField("unknown"):
                raise UnknownCallError
            begun = True
            yield response.message
