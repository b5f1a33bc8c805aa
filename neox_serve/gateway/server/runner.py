"""The one wrapper around every call: id, limits, deadline, error translation, log line, metrics.

Handlers raise ServeError or return; what leaves the gateway for an error is decided here and nowhere else.
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

from neox_serve.core.errors import OwnedElsewhere, Reason, ServeError
from neox_serve.core.generation.call_life import CallEvent
from neox_serve.core.tenancy.access import check_role
from neox_serve.core.tenancy.tenant_directory import UNKNOWN_CALLER
from neox_serve.core.tenancy.tenants import PriorityClass
from neox_serve.core.tenancy.usage import UsageRecord
from neox_serve.gateway.requests.validation import is_request_id
from neox_serve.gateway.server.calls import Call, Context, Method, StreamWriter, TokenCount, deadline_exceeded
from neox_serve.gateway.server.identity import Identity
from neox_serve.gateway.server.joins import UnknownCallError, joined
from neox_serve.gateway.server.metrics import GatewayMetrics
from neox_serve.gateway.server.repeats import Key, Repeats, Run, digest_of
from neox_serve.link.channels import LinkTls
from neox_serve.settings.gateway import GatewaySettings
from neox_serve.telemetry.tracing import TRACEPARENT, Tracing, end
from neox_serve.wire.admin_messages import PRIORITIES
from neox_serve.wire.status import CODES, to_grpc_status

log = structlog.get_logger(__name__)

EXPLAIN_KEY = "neox-explain"
"""Metadata: with "1" the trailing metadata has a `neox-route` for each prompt, which says how it came to its replica."""
SESSION_KEY = "neox-session"
"""Metadata: calls of one tenant that name the same session meet the same replica, where router.policy is session."""
SESSION_CHARACTERS = 128

# Half the calls in flight end within about this time under a load that fills a gateway; earlier tries would mostly be refused again.
OVERLOADED_RETRY_S = 1.0
# Another gateway of the service can be tried at once; this spares it the whole herd in the same instant.
DRAINING_RETRY_S = 0.5
# Where no part that knows better has said when to come back: the time a replica's place is taken by others, or it starts again.
UNAVAILABLE_RETRY_S = 1.0


class CallRunner:
    """Runs the calls of one gateway. note_usage: takes the record of each call that used the model."""

    def __init__(
        self,
        *,
        gateway_id: str,
        settings: GatewaySettings,
        metrics: GatewayMetrics,
        identity: Identity,
        note_usage: Callable[[UsageRecord], None],
        repeats: Repeats,
        tracing: Tracing,
        tls: LinkTls | None = None,
    ) -> None:
        self._tls = tls
        self._tracing = tracing
        self._gateway_id = gateway_id
        self._settings = settings
        self._metrics = metrics
        self._identity = identity
        self._note_usage = note_usage
        self._repeats = repeats
        self._bounded: set[Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    @property
    def calls_in_flight(self) -> int:
        """Calls that count against the cap and have not ended."""
        return len(self._bounded)

    async def run(self, method: Method, raw: bytes, context: Context) -> bytes:
        """Answers one call: returns the response's bytes (none for a stream), or ends the call with a status."""
        call = self._begin(method, context)
        try:
            response = await self._attempt(method, call, raw, context)
        except ServeError as error:
            self._end(method, call, CallEvent.CANCEL if error.reason is Reason.CANCELLED else CallEvent.FAIL, error)
            await self._abort(call, context, error)
            return b""
        except asyncio.CancelledError:
            self._end(method, call, CallEvent.CANCEL, self._why_cancelled(call))
            raise
        finally:
            self._leave(call)
        self._end(method, call, CallEvent.EXPIRE if call.partial else CallEvent.FINISH, None)
        context.set_trailing_metadata(self._trailing(call, context))
        return response

    async def idle(self) -> None:
        """Returns when no bounded call is in flight."""
        await self._idle.wait()

    def interrupt_all(self, error: ServeError) -> None:
        """Ends every bounded call with this error."""
        for call in list(self._bounded):
            call.interrupt(error)

    def interrupt_unwelcome(self) -> None:
        """Ends the calls whose caller would not be let in any more: its key was revoked, or its tenant disabled."""
        for call in list(self._bounded):
            if call.principal is not UNKNOWN_CALLER and not self._identity.is_still_valid(call.principal):
                call.interrupt(ServeError(Reason.UNAUTHENTICATED, "the credential of this call is not valid any more"))

    def interrupt_stalled(self, now_s: float) -> None:
        """Ends the calls whose client has read nothing for too long."""
        timeout_s = self._settings.stalled_client_timeout_s
        for call in list(self._bounded):
            if call.writing_since_s is not None and now_s - call.writing_since_s >= timeout_s:
                call.interrupt(ServeError(Reason.CANCELLED, f"the client has read nothing for {timeout_s:g} s"))

    def _begin(self, method: Method, context: Context) -> Call:
        now_s = asyncio.get_running_loop().time()
        left_s = context.time_remaining()
        allowed_s = self._settings.default_deadline_s if left_s is None else left_s
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("calls run in tasks")
        call = Call(method.path, task, uuid.uuid4().hex, now_s, now_s + allowed_s)
        structlog.contextvars.bind_contextvars(request_id=call.request_id)
        call.span = self._tracing.begin(method.path, _given(context, TRACEPARENT), {"rpc.system": "grpc"}, SpanKind.SERVER)
        self._metrics.began(call)
        return call

    async def _attempt(self, method: Method, call: Call, raw: bytes, context: Context) -> bytes:
        """Raises only ServeError and CancelledError."""
        try:
            call.principal = self._identity.identify(context)
            check_role(method.path, call.principal.roles)
            self._enter(method, call)
            message = method.decoder.decode(raw)
            key = self._identify(call, message)
            call.session = _given(context, SESSION_KEY)[:SESSION_CHARACTERS]
            if key is None or not method.metered:
                return await self._handle(method, call, message, context, None)
            return await self._run_once(key, raw, method, call, message, context)
        except ServeError:
            raise
        except asyncio.CancelledError:
            if call.interruption is None or context.cancelled():
                raise
            call.task.uncancel()
            raise call.interruption from None
        except Exception as error:  # the process boundary: whatever a handler raises becomes a status
            log.exception("fault in a handler", method=call.method)
            raise ServeError(Reason.INTERNAL, f"{type(error).__name__}: {error}") from error

    async def _run_once(self, key: Key, raw: bytes, method: Method, call: Call, message: Message, context: Context) -> bytes:
        """Runs the call, unless it repeats one: then it shares that one's answer."""
        digest = digest_of(raw)
        if (run := self._repeats.find(key, digest)) is not None:
            call.joined = True
            return await self._join(run, method, call, context)
        run = self._repeats.begin(key, digest)
        call.idempotency_key = "/".join(key)
        try:
            response = await self._handle(method, call, message, context, run)
        except OwnedElsewhere as elsewhere:
            self._repeats.fail(key, run, ServeError(Reason.CANCELLED, "it is answered by another gateway"))
            return await self._join_elsewhere(elsewhere.address, key, raw, method, call, message, context)
        except BaseException as error:
            failure = error if isinstance(error, ServeError) else call.interruption or ServeError(Reason.CANCELLED, "given up")
            self._repeats.fail(key, run, failure)
            raise
        if method.stream is None:
            run.put(response)
        if call.partial:
            self._repeats.fail(key, run, deadline_exceeded(call.deadline_at_s - call.arrived_at_s))
        else:
            self._repeats.succeed(key, run)
        return response

    async def _join_elsewhere(
        self, address: str, key: Key, raw: bytes, method: Method, call: Call, message: Message, context: Context
    ) -> bytes:
        """The answer of a call that another gateway runs or ran. Where that one does not know it any more, it is run here."""
        if call.reservation is not None:
            call.reservation.settle(0)
        try:
            call.joined = True
            async with asyncio.timeout_at(call.deadline_at_s):
                writer, response = StreamWriter(call, context), b""
                async for response in joined(address, key, digest_of(raw), self._tls):
                    if method.stream is not None:
                        await writer.write(response)
        except TimeoutError:
            raise deadline_exceeded(call.deadline_at_s - call.arrived_at_s) from None
        except UnknownCallError:
            call.joined, call.takes_over = False, True
            return await self._run_once(key, raw, method, call, message, context)
        return b"" if method.stream is not None else response

    async def _join(self, run: Run, method: Method, call: Call, context: Context) -> bytes:
        """The answer of a call that runs or has run; a stream's from its first event on. Raises ServeError as that call does."""
        try:
            async with asyncio.timeout_at(call.deadline_at_s):
                if method.stream is None:
                    return await run.next(0) or b""
                writer, position = StreamWriter(call, context), 0
                while (message := await run.next(position)) is not None:
                    await writer.write(message)
                    position += 1
        except TimeoutError:
            raise deadline_exceeded(call.deadline_at_s - call.arrived_at_s) from None
        return b""

    async def _handle(self, method: Method, call: Call, message: Message, context: Context, run: Run | None) -> bytes:
        """Streams mind the deadline themselves, since a write must not be cut off."""
        if method.stream is not None:
            await method.stream(call, message, StreamWriter(call, context, run.put if run else None))
            return b""
        if method.unary is None:
            raise RuntimeError(f"{method.path} has no handler")
        try:
            async with asyncio.timeout_at(call.deadline_at_s) as timeout:
                response = await method.unary(call, message)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise deadline_exceeded(call.deadline_at_s - call.arrived_at_s) from None
        return response.SerializeToString()

    def _enter(self, method: Method, call: Call) -> None:
        if not method.bounded:
            call.life.advance(CallEvent.ACCEPT)
            return
        if self.draining:
            raise ServeError(Reason.DRAINING, "this gateway is about to stop", retry_after_s=DRAINING_RETRY_S)
        most = self._settings.max_concurrent_requests
        if len(self._bounded) >= most:
            raise ServeError(
                Reason.OVERLOADED, f"{most} requests are in flight already", {"max_concurrent_requests": str(most)}, OVERLOADED_RETRY_S
            )
        self._bounded.add(call)
        self._idle.clear()
        call.life.advance(CallEvent.ACCEPT)

    def _leave(self, call: Call) -> None:
        self._bounded.discard(call)
        if not self._bounded:
            self._idle.set()

    def _identify(self, call: Call, message: Any) -> Key | None:
        """Notes what the message says of the call. Returns what repeats of it are known by, where its client gave it an id."""
        given = getattr(message, "request_id", "")
        if given and is_request_id(given):
            call.request_id = given
            structlog.contextvars.bind_contextvars(request_id=given)
        call.adapter = getattr(message, "adapter", "")
        asked = PRIORITIES.get(getattr(message, "priority", 0))  # an unknown one is refused with the other fields
        call.priority = call.tenant.allowed_class(asked or PriorityClass.DEFAULT)
        call.clamped = asked is not None and bool(getattr(message, "priority", 0)) and call.priority != asked
        return (call.tenant.name, call.method, call.request_id) if given and call.request_id == given else None

    def _why_cancelled(self, call: Call) -> ServeError:
        """grpc cancels the handler both when the caller gives up and when the caller's deadline passes."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= call.deadline_at_s:
            return deadline_exceeded(call.deadline_at_s - call.arrived_at_s)
        return ServeError(Reason.CANCELLED, "the caller gave up")

    def _end(self, method: Method, call: Call, event: CallEvent, error: ServeError | None) -> None:
        """The call's one terminal event, with its log line, its metrics and its usage record."""
        if not call.life.advance(event):
            return
        now_s = asyncio.get_running_loop().time()
        if call.reservation is not None:
            call.reservation.settle(call.tokens.used if call.admission_s is not None else 0)
        code = "OK" if error is None else CODES[error.reason].name
        reason = "" if error is None else error.reason.value
        self._metrics.ended(call, code, reason, now_s)
        self._log(call, error, code, now_s)
        end(
            call.span,
            reason,
            request_id=call.request_id,
            tenant=call.tenant.name,
            replica_id=call.replica_id,
            prompt_tokens=call.tokens.prompt,
            completion_tokens=call.tokens.completion,
        )
        if method.metered and not call.joined and call.principal is not UNKNOWN_CALLER:
            self._note_usage(usage_record(call, reason or "OK", now_s, time.time()))

    def _log(self, call: Call, error: ServeError | None, code: str, now_s: float) -> None:
        facts: dict[str, Any] = {
            "method": call.method,
            "tenant": call.tenant.name,
            "outcome": call.life.phase.value,
            "code": code,
            "prompt_tokens": call.tokens.prompt,
            "completion_tokens": call.tokens.completion,
            "total_s": round(now_s - call.arrived_at_s, 4),
        }
        if call.first_token_at_s is not None:
            facts["first_token_s"] = round(call.first_token_at_s - call.arrived_at_s, 4)
        if call.admission_s is not None:
            facts["admission_s"] = round(call.admission_s, 4)
        if call.gaps_s:
            facts["gaps_s"] = [round(gap_s, 4) for gap_s in call.gaps_s]
        if error is None:
            log.info("call", **facts)
            return
        write = log.error if code == "INTERNAL" else log.info
        write("call", reason=error.reason.value, error=error.message, **facts)

    async def _abort(self, call: Call, context: Context, error: ServeError) -> None:
        """Sends the status. Raises AbortError, which ends the handler."""
        if CODES[error.reason] is grpc.StatusCode.UNAVAILABLE and error.retry_after_s is None:
            error = replace(error, retry_after_s=UNAVAILABLE_RETRY_S)
        if call.first_token_at_s is not None:
            error = replace(error, metadata={**error.metadata, "completion_tokens": str(call.tokens.completion)})
        status = to_grpc_status(error, call.request_id)
        trailing = (*(status.trailing_metadata or ()), *self._trailing(call, context))
        await context.abort(status.code, status.details, trailing)

    def _trailing(self, call: Call, context: Context) -> tuple[tuple[str, str], ...]:
        clamped = (("neox-priority", call.priority.name.lower()),) if call.clamped else ()
        routes = tuple(("neox-route", route) for route in call.routes) if _given(context, EXPLAIN_KEY) == "1" else ()
        return (("neox-request-id", call.request_id), ("neox-gateway", self._gateway_id), *clamped, *routes)


def _given(context: Context, key: str) -> str:
    """A value of the call's metadata; empty where it is not there."""
    return next((str(value) for name, value in context.invocation_metadata() if name == key), "")


def usage_record(call: Call, outcome: str, now_s: float, wall_s: float) -> UsageRecord:
    """What a call used; nothing, where it got no replica. now_s: of the loop's clock; wall_s: since the epoch."""
    tokens = call.tokens if call.admission_s is not None else TokenCount()
    first_token_s = 0.0 if call.first_token_at_s is None else call.first_token_at_s - call.arrived_at_s
    return UsageRecord(
        request_id=call.request_id,
        tenant=call.tenant.name,
        method=call.method.rsplit("/", 1)[-1],
        model=call.model,
        adapter=call.adapter,
        replica_id=call.replica_id,
        outcome=outcome,
        at_us=round(wall_s * 1e6),
        prompt_tokens=tokens.prompt,
        cached_tokens=tokens.cached,
        completion_tokens=tokens.completion,
        admission_us=round((call.admission_s or 0.0) * 1e6),
        first_token_us=round(first_token_s * 1e6),
        total_us=round((now_s - call.arrived_at_s) * 1e6),
    )
