"""The link between gateways: one gateway reads the response of a call that another one owns."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from neox_serve.core.errors import Reason, ServeError
from neox_serve.gateway.server.idempotency import IdempotencyCache, IdempotencyKey, UnknownCallError
from neox_serve.internal.v1 import gateway_link_pb2 as pb
from neox_serve.internal.v1.gateway_link_pb2_grpc import (
    GatewayLinkServiceServicer,
    GatewayLinkServiceStub,
    add_GatewayLinkServiceServicer_to_server,
)
from neox_serve.link.channels import LinkTls, bind, internal_channel, internal_server
from neox_serve.link.streams import StreamEndedError, read
from neox_serve.wire import router_messages as wire

_STOP_GRACE_S = 0.5
_RETRY_S = 0.5


class IdempotencyLinkServer(GatewayLinkServiceServicer):
    """Serves the responses of this gateway to other gateways."""

    def __init__(self, cache: IdempotencyCache, tls: LinkTls | None) -> None:
        self._cache = cache
        self._tls = tls
        self._server = internal_server()
        self.address = ""

    async def start(self, host: str) -> None:
        """Listens on a free port and sets `address` to "host:port". Raises OSError if it cannot listen."""
        add_GatewayLinkServiceServicer_to_server(self, self._server)
        self.address = bind(self._server, host, 0, self._tls)
        await self._server.start()

    async def stop(self) -> None:
        """Stops the server; responses that are being sent get half a second to end."""
        await self._server.stop(_STOP_GRACE_S)

    async def FollowCall(self, request: pb.FollowCallRequest, context: Any) -> AsyncIterator[pb.FollowCallResponse]:  # noqa: N802
        """Sends the messages of a call as they come, then how it ended."""
        key = IdempotencyKey(request.tenant, request.method, request.request_id)
        try:
            shared = self._cache.find(key, request.digest)
            if shared is None:
                yield pb.FollowCallResponse(unknown=True)
                return
            async for message in shared.messages():
                yield pb.FollowCallResponse(message=message)
            yield pb.FollowCallResponse(complete=True)
        except ServeError as error:
            yield pb.FollowCallResponse(failure=wire.refusal_to_proto(error))


class IdempotencyLinkClient:
    """Reads responses from other gateways."""

    def __init__(self, tls: LinkTls | None) -> None:
        self._tls = tls

    async def follow(self, address: str, key: IdempotencyKey, digest: bytes) -> AsyncGenerator[bytes, None]:
        """Yields the messages of a call that the gateway at `address` owns.

        Raises UnknownCallError, before the first message, if that gateway does not know the call or is gone; ServeError if the call failed;
        REPLICA_LOST if the gateway is lost after the first message.
        """
        request = pb.FollowCallRequest(tenant=key.tenant, method=key.method, request_id=key.request_id, digest=digest)
        async with internal_channel(address, self._tls) as channel:
            stream, received = GatewayLinkServiceStub(channel).FollowCall(request), False
            while True:
                try:
                    response = await read(stream, pb.FollowCallResponse)
                except StreamEndedError as ended:
                    if received:
                        raise _gateway_lost() from ended
                    raise UnknownCallError from ended
                if response.HasField("failure"):
                    raise wire.refusal_from_proto(response.failure)
                if response.HasField("unknown"):
                    raise UnknownCallError
                if response.HasField("complete"):
                    return
                received = True
                yield response.message


def _gateway_lost() -> ServeError:
    return ServeError(Reason.REPLICA_LOST, "the gateway that answers this request_id was lost; try again", {}, _RETRY_S)
