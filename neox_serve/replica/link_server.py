"""The replica's end of the engine links: one stream and one session per gateway. When a stream ends for any reason, all requests that came
in on it are aborted.
"""

import asyncio
from itertools import count

import grpc
import structlog
from grpc import aio

from neox_serve.core.errors import Reason, ServeError
from neox_serve.engine.protocol import Engine
from neox_serve.internal.v1 import engine_link_pb2 as pb
from neox_serve.internal.v1.engine_link_pb2_grpc import EngineLinkServiceServicer
from neox_serve.link.streams import StreamEndedError, read, until_one_ends, write
from neox_serve.replica.link_session import EngineLinkSession
from neox_serve.telemetry.tracing import Tracing
from neox_serve.wire import engine_messages as wire

_log = structlog.get_logger(__name__)

_OVERCOMMIT = 2
"""A replica refuses requests beyond this multiple of max_requests. The router respects max_requests; gateways without a router know only
their own share."""
_RETRY_S = 1.0
"""Retry delay after DRAINING or OVERLOADED from a replica. By then gateways ask the router, which knows the state of all replicas."""

Context = aio.ServicerContext[pb.ConnectRequest, pb.ConnectResponse]


class EngineLinkServer(EngineLinkServiceServicer):
    """Serves one engine to many gateways. max_requests: maximum number of requests that the router sends at a time."""

    def __init__(self, *, engine: Engine, replica_id: str, max_requests: int, tracing: Tracing) -> None:
        self._tracing = tracing
        self._engine = engine
        self._replica_id = replica_id
        self._max_requests = max_requests * _OVERCOMMIT
        self._numbers = count(1)
        self._sessions: set[EngineLinkSession] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.draining = False
        """Whether new links and requests are refused."""

    @property
    def requests_in_flight(self) -> int:
        """Number of requests accepted and not ended, over all gateways."""
        return sum(session.requests for session in self._sessions)

    @property
    def gateways(self) -> int:
        """Number of linked gateways."""
        return len(self._sessions)

    async def close(self) -> None:
        """Ends all streams and waits until their requests are aborted."""
        self.draining = True
        for session in self._sessions:
            session.end("the replica is stopping")
        while self._sessions or self._closing:
            self._changed.clear()
            await self._changed.wait()

    async def until_idle(self) -> None:
        """Waits until every accepted request has ended and its last frame is written."""
        while self._closing or not all(session.idle for session in self._sessions):
            self._changed.clear()
            await self._changed.wait()

    async def Connect(  # type: ignore[override]  # noqa: N802  a coroutine, because a generator's `finally` would run later
        self, request_iterator: object, context: Context
    ) -> None:
        """Serves one gateway's stream until it ends."""
        try:
            gateway_id = await self._greet(context)
            await self._serve(gateway_id, context)
        except StreamEndedError as ended:
            _log.info("gateway_unlinked", cause=str(ended))

    async def _serve(self, gateway_id: str, context: Context) -> None:
        session = self._open_session()
        _log.info("gateway_linked", gateway_id=gateway_id)
        try:
            await until_one_ends(session.handle_commands(context), session.write_to(context), session.ended())
        finally:
            _log.info("gateway_link_closed", gateway_id=gateway_id, aborted=session.requests)
            self._close_session(session)

    async def _greet(self, context: Context) -> str:
        if self.draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        first = await read(context, pb.ConnectRequest)
        if first.hello.schema_version != wire.SCHEMA_VERSION:
            versions = f"schema version {first.hello.schema_version} does not match this replica's version {wire.SCHEMA_VERSION}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, versions)
        await write(context, wire.welcome(self._replica_id))
        return first.hello.gateway_id

    def _open_session(self) -> EngineLinkSession:
        session = EngineLinkSession(
            number=next(self._numbers), engine=self._engine, admit=self._admit, on_ended=self._changed.set, tracing=self._tracing
        )
        self._sessions.add(session)
        return session

    def _close_session(self, session: EngineLinkSession) -> None:
        """Aborts the session's requests in a separate task, because the stream's task may be cancelled at any moment."""
        self._sessions.discard(session)
        task = asyncio.ensure_future(session.close())
        self._closing.add(task)
        task.add_done_callback(self._closed)
        self._changed.set()

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        self._changed.set()

    def _admit(self) -> None:
        if self.draining:
            raise ServeError(Reason.DRAINING, "the replica is draining", {"replica_id": self._replica_id}, _RETRY_S)
        if self.requests_in_flight > self._max_requests:
            raise ServeError(Reason.OVERLOADED, "the replica is full", {}, _RETRY_S)
