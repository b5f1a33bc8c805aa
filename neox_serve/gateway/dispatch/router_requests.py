"""Matches the gateway's requests on the router link with the router's replies.

The link is one bidirectional stream for all requests, so each request carries an id and its reply carries the same id. A request ends in
exactly one of these ways, and is no longer pending afterwards:

    reply        `call` returns it
    timeout      `call` raises NoReplyError; a late reply finds no request (`on_reply` returns False)
    router lost  `call` raises NoReplyError at once, or the request is sent again to the next router, as `resend` says
    cancelled    the caller's CancelledError passes through

The router may first reply that a request is queued. The timeout no longer applies then: the router ends a queued request itself.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from neox_serve.core.errors import Reason, ServeError
from neox_serve.internal.v1 import router_link_pb2 as pb

Reply = TypeVar("Reply")

Send = Callable[[pb.ConnectGatewayRequest], None]
"""Sends a message to the router, or drops it if there is no router."""

_MAX_PENDING = 65_536
"""More than a gateway's limits on concurrent calls allow; reached only if the router stops replying."""
_OVERLOADED_RETRY_S = 1.0


class NoReplyError(Exception):
    """The router sent no final reply. It does not leave this package: each caller decides what to do without the router."""

    def __init__(self, cause: str, *, queued: bool = False) -> None:
        super().__init__(cause)
        self.queued = queued
        """Whether the router had replied that the request waits in its queue."""


@dataclass(slots=True, eq=False)
class _Pending(Generic[Reply]):
    """A request without a final reply."""

    message: pb.ConnectGatewayRequest
    on_reply: Callable[[Reply], None] | None
    queued: bool = False
    reply: "asyncio.Future[Reply]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Cancelled if the router is lost."""


class RouterRequests(Generic[Reply]):
    """Requests of one kind, with ids of their own.

    send: sends a message on the link. connected: returns whether a router has accepted the hello. resend: whether requests survive the loss
    of the router and are sent to the next one; otherwise they fail at once. max_pending: number of requests that may wait for a reply.
    """

    def __init__(self, *, send: Send, connected: Callable[[], bool], resend: bool = False, max_pending: int = _MAX_PENDING) -> None:
        self._send = send
        self._connected = connected
        self._resend = resend
        self._max_pending = max_pending
        self._ids = count(1)
        self._pending: dict[int, _Pending[Reply]] = {}

    @property
    def pending(self) -> int:
        """Number of requests that wait for a reply."""
        return len(self._pending)

    def next_id(self) -> int:
        """Returns a new request id, unique for the life of this gateway."""
        return next(self._ids)

    async def call(
        self,
        request_id: int,
        message: pb.ConnectGatewayRequest,
        *,
        timeout_s: float,
        on_reply: Callable[[Reply], None] | None = None,
    ) -> Reply:
        """Sends a request and returns the router's final reply.

        request_id: from `next_id`, and the id in the message. timeout_s: until the first reply, be it final or "queued". on_reply: called
        with the final reply in the moment it arrives, so that the caller's records change before the next message of the link is handled.
        If the call is cancelled or times out after that, the caller undoes it.

        Raises NoReplyError if there is no reply, and ServeError(OVERLOADED) if max_pending requests are waiting.
        """
        pending = self._begin(request_id, message, on_reply)
        try:
            await asyncio.wait((pending.reply,), timeout=timeout_s)
            if pending.queued:
                await asyncio.wait((pending.reply,))
        finally:
            self._pending.pop(request_id, None)
        if pending.reply.cancelled():
            raise NoReplyError("the router was lost", queued=pending.queued)
        if not pending.reply.done():
            raise NoReplyError(f"no reply from the router within {timeout_s:g} s")
        return pending.reply.result()

    def on_queued(self, request_id: int) -> bool:
        """Handles the reply that a request is queued. Returns False if the request is not pending."""
        pending = self._pending.get(request_id)
        if pending is None:
            return False
        pending.queued = True
        return True

    def on_reply(self, request_id: int, reply: Reply) -> bool:
        """Handles a final reply. Returns False if the request is not pending: it has ended, or has had its reply."""
        pending = self._pending.pop(request_id, None)
        if pending is None:
            return False
        if pending.on_reply is not None:
            pending.on_reply(reply)
        pending.reply.set_result(reply)
        return True

    def on_router_connected(self) -> None:
        """Sends pending requests to the router that has just accepted the hello."""
        for pending in self._pending.values():
            self._send(pending.message)

    def on_router_lost(self) -> None:
        """Ends all pending requests, unless they are to be sent again."""
        if self._resend:
            return
        lost, self._pending = self._pending, {}
        for pending in lost.values():
            pending.reply.cancel()

    def _begin(self, request_id: int, message: pb.ConnectGatewayRequest, on_reply: Callable[[Reply], None] | None) -> "_Pending[Reply]":
        if not (self._resend or self._connected()):
            raise NoReplyError("the router is not connected")
        if len(self._pending) >= self._max_pending:
            text = f"{self._max_pending} requests already wait for a reply from the router"
            raise ServeError(Reason.OVERLOADED, text, {}, _OVERLOADED_RETRY_S)
        pending = _Pending[Reply](message, on_reply)
        self._pending[request_id] = pending
        if self._connected():
            self._send(message)
        return pending
