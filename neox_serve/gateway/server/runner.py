"""Runs every call: authentication, limits, deadline, error translation, log line and metrics.

Handlers return or raise ServeError. Only this module decides which status a client receives for an error.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message
from opentelemetry.trace import SpanKind

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.generation.call_life import CallEvent
from neox_serve.core.tenancy.access import check_role
from neox_serve.core.tenancy.tenant_directory import UNKNOWN_CALLER
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.tenancy.usage import UsageRecord
from neox_serve.gateway.requests.validation import is_request_id
from neox_serve.gateway.server.call_reports import log_fields, usage_record
from neox_serve.gateway.server.calls import Call, CallIdentity, Context, Method, StreamWriter
from neox_serve.gateway.server.deadlines import Deadline
from neox_serve.gateway.server.idempotency import Idempotency, IdempotencyKey, IdempotentRequest, digest_of
from neox_serve.gateway.server.identity import Identity
from neox_serve.gateway.server.in_flight import CallsInFlight
from neox_serve.gateway.server.metrics import GatewayMetrics
from neox_serve.settings.gateway import GatewaySettings
from neox_serve.telemetry.tracing import TRACEPARENT, Tracing, end
from neox_serve.wire.admin_messages import PRIORITIES
from neox_serve.wire.status import CODES, to_grpc_status

log = structlog.get_logger(__name__)

EXPLAIN_KEY = "neox-explain"
"""Request metadata. The value "1" adds a `neox-route` entry to the trailing metadata for each prompt, which says why it was routed so."""
SESSION_KEY = "neox-session"
"""Request metadata. Calls of one tenant with the same session go to the same replica if router.policy is "session"."""
MAX_SESSION_CHARACTERS = 128
"""Longer sessions are cut off."""

UNAVAILABLE_RETRY_S = 1.0
"""Retry delay of UNAVAILABLE errors that carry none: about the time in which a lost replica is replaced or starts again."""


class CallRunner:
    """Runs the calls of one gateway."""

    def __init__(
        self,
        *,
        gateway_id: str,
        settings: GatewaySettings,
        metrics: GatewayMetrics,
        identity: Identity,
        note_usage: Callable[[UsageRecord], None],
        idempotency: Idempotency,
        tracing: Tracing,
    ) -> None:
        """`note_usage` is given the record of every call that used the model."""
        self._gateway_id = gateway_id
        self._settings = settings
        self._metrics = metrics
        self._identity = identity
        self._note_usage = note_usage
        self._idempotency = idempotency
        self._tracing = tracing
        self._in_flight = CallsInFlight(settings.max_concurrent_requests)

    @property
    def calls_in_flight(self) -> int:
        """Number of calls that count against the limit and have not ended."""
        return len(self._in_flight)

    @property
    def draining(self) -> bool:
        """Whether new calls are refused because the gateway shuts down."""
        return self._in_flight.draining

    def start_draining(self) -> None:
        """Refuses new calls with DRAINING from now on."""
        self._in_flight.draining = True

    async def run(self, method: Method, raw: bytes, context: Context) -> bytes:
        """Serves one call. Returns the response of a unary method, b"" for a stream; or ends the call with an error status."""
        call = self._begin(method, context)
        try:
            response = await self._respond(method, call, raw, context)
        except ServeError as error:
            self._end(method, call, CallEvent.CANCEL if error.reason is Reason.CANCELLED else CallEvent.FAIL, error)
            await self._abort(call, context, error)
            return b""
        except asyncio.CancelledError:
            self._end(method, call, CallEvent.CANCEL, self._cancellation_error(call))
            raise
        finally:
            self._in_flight.leave(call)
        self._end(method, call, CallEvent.EXPIRE if call.progress.partial else CallEvent.FINISH, None)
        context.set_trailing_metadata(self._trailing(call, context))
        return response

    async def idle(self) -> None:
        """Returns when no call that counts against the limit is in flight."""
        await self._in_flight.idle()

    def interrupt_all(self, error: ServeError) -> None:
        """Ends all calls in flight with this error."""
        for call in self._in_flight:
            call.interrupt(error)

    def interrupt_revoked(self) -> None:
        """Ends the calls whose credential is no longer valid, because a key was revoked or a tenant disabled."""
        for call in self._in_flight:
            if call.principal is not UNKNOWN_CALLER and not self._identity.is_still_valid(call.principal):
                call.interrupt(ServeError(Reason.UNAUTHENTICATED, "the credential of this call is no longer valid"))

    def interrupt_stalled(self, now_s: float) -> None:
        """Ends the calls whose client has read nothing for too long."""
        timeout_s = self._settings.stalled_client_timeout_s
        for call in self._in_flight:
            write_began_at_s = call.progress.write_began_at_s
            if write_began_at_s is not None and now_s - write_began_at_s >= timeout_s:
                call.interrupt(ServeError(Reason.CANCELLED, f"the client has read nothing for {timeout_s:g} s"))

    def _begin(self, method: Method, context: Context) -> Call:
        now_s = asyncio.get_running_loop().time()
        left_s = context.time_remaining()
        allowed_s = self._settings.default_deadline_s if left_s is None else left_s
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call must run in a task")
        call = Call(CallIdentity(method.path, uuid.uuid4().hex), Deadline(now_s, now_s + allowed_s), task)
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        call.span = self._tracing.begin(method.path, _metadata_value(context, TRACEPARENT), {"rpc.system": "grpc"}, SpanKind.SERVER)
        self._metrics.began(call)
        return call

    async def _respond(self, method: Method, call: Call, raw: bytes, context: Context) -> bytes:
        """Returns the response. Raises only ServeError and CancelledError."""
        try:
            call.identity = replace(call.identity, principal=self._identity.identify(context))
            check_role(method.path, call.principal.roles)
            if method.bounded:
                self._in_flight.enter(call)
            call.progress.life.advance(CallEvent.ACCEPT)
            message = method.decoder.decode(raw)
            key = self._identify(call, message, _metadata_value(context, SESSION_KEY)[:MAX_SESSION_CHARACTERS])
            if key is None or not method.metered:
                return await self._handle(method, call, message, context, None)
            return await self._handle_idempotently(key, raw, method, call, message, context)
        except ServeError:
            raise
        except asyncio.CancelledError:
            if call.interruption is None or context.cancelled():
                raise
            call.task.uncancel()
            raise call.interruption from None
        except Exception as error:  # the process boundary: anything else that a handler raises becomes a status
            log.exception("handler_failed", method=call.method)
            raise ServeError(Reason.INTERNAL, f"{type(error).__name__}: {error}") from error

    async def _handle_idempotently(
        self, key: IdempotencyKey, raw: bytes, method: Method, call: Call, message: Message, context: Context
    ) -> bytes:
        async def execute(record: Callable[[bytes], None]) -> bytes:
            return await self._handle(method, call, message, context, record)

        writer = StreamWriter(call, context) if method.stream is not None else None
        return await self._idempotency.respond(call, IdempotentRequest(key, digest_of(raw), execute, writer))

    async def _handle(
        self, method: Method, call: Call, message: Message, context: Context, record: Callable[[bytes], None] | None
    ) -> bytes:
        """Runs the handler. Streaming handlers observe the deadline themselves, because a write must not be cut off."""
        if method.stream is not None:
            await method.stream(call, message, StreamWriter(call, context, record))
            return b""
        if method.unary is None:
            raise RuntimeError(f"{method.path} has no handler")
        async with call.deadline.enforced():
            response = await method.unary(call, message)
        return response.SerializeToString()

    def _identify(self, call: Call, message: Any, session: str) -> IdempotencyKey | None:
        """Adds what the message says to the call's identity. Returns the key of repeats if the client chose a valid request id."""
        requested_id = getattr(message, "request_id", "")
        has_id = bool(requested_id) and is_request_id(requested_id)
        if has_id:
            structlog.contextvars.bind_contextvars(request_id=requested_id)
        priority_field = getattr(message, "priority", 0)
        requested = PRIORITIES.get(priority_field)  # an unknown value is refused later, with the other fields
        allowed = call.tenant.allowed_class(requested or PriorityClass.DEFAULT)
        call.identity = replace(
            call.identity,
            request_id=requested_id if has_id else call.request_id,
            priority=allowed,
            priority_lowered=requested is not None and bool(priority_field) and allowed != requested,
            adapter=getattr(message, "adapter", ""),
            session=session,
        )
        return IdempotencyKey(call.tenant.name, call.method, call.request_id) if has_id else None

    def _cancellation_error(self, call: Call) -> ServeError:
        """The transport cancels a call both when the client cancels it and when the client's deadline passes."""
        if asyncio.get_running_loop().time() >= call.deadline.ends_at_s:
            return call.deadline.exceeded()
        return ServeError(Reason.CANCELLED, "the client cancelled the call")

    def _end(self, method: Method, call: Call, event: CallEvent, error: ServeError | None) -> None:
        """Records the terminal event of the call: quota, metrics, log line, span and usage record. Only the first event counts."""
        progress, accounting = call.progress, call.accounting
        if not progress.life.advance(event):
            return
        now_s = asyncio.get_running_loop().time()
        accounting.settle(accounting.tokens.used if progress.admission_s is not None else 0)
        code = "OK" if error is None else CODES[error.reason].name
        reason = "" if error is None else error.reason.value
        self._metrics.ended(call, code, reason, now_s)
        self._log(call, error, code, now_s)
        end(
            call.span,
            reason,
            request_id=call.request_id,
            tenant=call.tenant.name,
            replica_id=progress.replica_id,
            prompt_tokens=accounting.tokens.prompt,
            completion_tokens=accounting.tokens.completion,
        )
        if method.metered and not call.replayed and call.principal is not UNKNOWN_CALLER:
            self._note_usage(usage_record(call, reason or "OK", now_s, time.time()))

    def _log(self, call: Call, error: ServeError | None, code: str, now_s: float) -> None:
        fields = log_fields(call, code, now_s)
        if error is None:
            log.info("call", **fields)
            return
        write = log.error if code == "INTERNAL" else log.info
        write("call", reason=error.reason.value, error=error.message, **fields)

    async def _abort(self, call: Call, context: Context, error: ServeError) -> None:
        """Sends the error status. Raises AbortError, which ends the handler."""
        if CODES[error.reason] is grpc.StatusCode.UNAVAILABLE and error.retry_after_s is None:
            error = replace(error, retry_after_s=UNAVAILABLE_RETRY_S)
        if call.progress.first_token_at_s is not None:
            error = replace(error, metadata={**error.metadata, "completion_tokens": str(call.accounting.tokens.completion)})
        status = to_grpc_status(error, call.request_id)
        trailing = (*(status.trailing_metadata or ()), *self._trailing(call, context))
        await context.abort(status.code, status.details, trailing)

    def _trailing(self, call: Call, context: Context) -> tuple[tuple[str, str], ...]:
        lowered = (("neox-priority", call.identity.priority.name.lower()),) if call.identity.priority_lowered else ()
        explained = _metadata_value(context, EXPLAIN_KEY) == "1"
        routes = tuple(("neox-route", route) for route in call.progress.routes) if explained else ()
        return (("neox-request-id", call.request_id), ("neox-gateway", self._gateway_id), *lowered, *routes)


def _metadata_value(context: Context, key: str) -> str:
    """Returns the first value of a metadata key, or "" if there is none."""
    return next((str(value) for name, value in context.invocation_metadata() if name == key), "")
