"""One call in the gateway: what it is, how long it may take, what became of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import Message
from opentelemetry.trace import INVALID_SPAN, Span

from neox_serve.core.cluster import Terms
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.generation.call_life import CallEvent, CallLife
from neox_serve.core.tenancy.tenant_directory import UNKNOWN_CALLER, Principal
from neox_serve.core.tenancy.tenants import PriorityClass, Tenant
from neox_serve.gateway.dispatch.protocol import ReservationHandle
from neox_serve.gateway.server.decoding import Decoder
from neox_serve.telemetry.tracing import traceparent
from neox_serve.transport.call import ServerCall
from neox_serve.v1 import generation_pb2
from neox_serve.wire.public_messages import duration

T = TypeVar("T")

Context = ServerCall

# A partial answer leaves this long before the deadline, to be at the client in time: a turn of a busy loop, and the network.
PARTIAL_MARGIN_S = 0.25
# Of short deadlines the margin takes no more than this share.
PARTIAL_MARGIN_FRACTION = 0.25


@dataclass(slots=True)
class TokenCount:
    """Tokens of a call or of one of its prompts."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    truncated: int = 0

    @property
    def used(self) -> int:
        """What counts in quotas."""
        return self.prompt + self.completion

    def add(self, other: "TokenCount") -> None:
        """Adds another count to this one."""
        self.prompt += other.prompt
        self.cached += other.cached
        self.completion += other.completion
        self.truncated += other.truncated

    def message(self) -> generation_pb2.Usage:
        """As clients see it."""
        return generation_pb2.Usage(
            prompt_tokens=self.prompt, cached_tokens=self.cached, completion_tokens=self.completion, truncated_tokens=self.truncated
        )


@dataclass(slots=True, eq=False)
class Call:
    """One call. Times are of the event loop's clock, `*_at_s` are moments, other `*_s` are spans; None: has not happened.

    principal: who calls, as soon as that is known; before that nobody with any right. priority: the class that it gets; clamped: it
    asked for a higher one. gaps_s: how long it stood still for each replica that it lost. model, adapter, replica_id: what serves it, empty
    where nothing did. session: ties it to others, for routing. routes: how each of its prompts came to its replica. predictions: of each
    prompt, the tokens thought to be cached and found to be. partial: the deadline has come, and the answer is what there is. reservation:
    of its tenant's quotas, settled when it ends. joined: it repeats another call, and shares its answer.
    idempotency_key, takes_over: see Terms.
    """

    method: str
    task: "asyncio.Task[Any]"
    request_id: str
    arrived_at_s: float
    deadline_at_s: float
    principal: Principal = UNKNOWN_CALLER
    priority: PriorityClass = PriorityClass.DEFAULT
    clamped: bool = False
    gaps_s: list[float] = field(default_factory=list)
    model: str = ""
    adapter: str = ""
    replica_id: str = ""
    session: str = ""
    routes: list[str] = field(default_factory=list)
    predictions: list[tuple[int, int]] = field(default_factory=list)
    life: CallLife = field(default_factory=CallLife)
    tokens: TokenCount = field(default_factory=TokenCount)
    tokenization_s: float | None = None
    admission_s: float | None = None
    first_token_at_s: float | None = None
    last_token_at_s: float | None = None
    writing_since_s: float | None = None
    partial: bool = False
    interruption: ServeError | None = None
    reservation: ReservationHandle | None = None
    joined: bool = False
    idempotency_key: str = ""
    takes_over: bool = False
    span: Span = INVALID_SPAN

    @property
    def tenant(self) -> Tenant:
        """Whose call it is."""
        return self.principal.tenant

    @property
    def routing_session(self) -> str:
        """Of this tenant alone; empty where the call has none."""
        return f"{self.tenant.name}/{self.session}" if self.session else ""

    @property
    def partial_at_s(self) -> float:
        """When an answer of what there is must leave to arrive before the deadline."""
        allowed_s = self.deadline_at_s - self.arrived_at_s
        return self.deadline_at_s - min(PARTIAL_MARGIN_S, PARTIAL_MARGIN_FRACTION * allowed_s)

    def terms(self, now_s: float) -> Terms:
        """On whose account and how urgently its requests run."""
        left_s = max(0.0, self.deadline_at_s - now_s)
        return Terms(
            self.tenant.name,
            self.tenant.weight,
            self.priority,
            left_s,
            traceparent=traceparent(self.span),
            idempotency_key=self.idempotency_key,
            takes_over=self.takes_over,
        )

    def interrupt(self, error: ServeError) -> None:
        """Ends the call with this error, wherever it stands."""
        if self.interruption is None and not self.life.ended:
            self.interruption = error
            self.task.cancel()

    def admitted(self, admission_s: float, replica_id: str, explanation: str = "") -> None:
        """Notes that an engine has one of its prompts; of several the slowest counts, and the last one's replica."""
        self.life.advance(CallEvent.ADMIT)
        self.replica_id = replica_id
        self.routes.append(f"replica={replica_id} {explanation}".rstrip())
        self.admission_s = max(self.admission_s or 0.0, admission_s)

    def output(self, now_s: float) -> None:
        """Notes that tokens have arrived."""
        if self.first_token_at_s is None:
            self.first_token_at_s = now_s
            self.life.advance(CallEvent.OUTPUT)
        self.last_token_at_s = now_s

    def timings(self, now_s: float) -> generation_pb2.Timings:
        """Where the time went, up to now."""
        timings = generation_pb2.Timings(total=duration(now_s - self.arrived_at_s))
        if self.tokenization_s is not None:
            timings.tokenization.CopyFrom(duration(self.tokenization_s))
        if self.admission_s is not None:
            timings.admission.CopyFrom(duration(self.admission_s))
        if self.first_token_at_s is not None:
            timings.first_token.CopyFrom(duration(self.first_token_at_s - self.arrived_at_s))
        return timings


class StreamWriter:
    """Writes a stream's messages. record: is given each of them too.

    How long a write has been waiting is for all to see: a client that never reads loses its call.
    """

    def __init__(self, call: Call, context: Context, record: Callable[[bytes], None] | None = None) -> None:
        self._call = call
        self._context = context
        self._record = record
        self._clock = asyncio.get_running_loop().time

    @property
    def busy(self) -> bool:
        """Whether the client has yet to take something."""
        return bool(self._context.unsent)

    def put(self, message: bytes) -> None:
        """Writes one message without waiting for the client; while this is busy, `write` is the way to go on."""
        if self._record is not None:
            self._record(message)
        self._context.put(message)

    async def write(self, message: bytes) -> None:
        """Writes one message; waits while the client reads too slowly."""
        if self._record is not None:
            self._record(message)
        self._call.writing_since_s = self._clock()
        await self._context.write(message)
        self._call.writing_since_s = None


UnaryHandler = Callable[[Call, Any], Awaitable[Message]]
StreamHandler = Callable[[Call, Any, StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. Exactly one of the handlers is set. bounded: counts against the concurrency cap, and is refused while draining.

    metered: uses the model, and leaves a usage record.
    """

    service: str
    name: str
    decoder: Decoder[Any]
    unary: UnaryHandler | None = None
    stream: StreamHandler | None = None
    bounded: bool = True
    metered: bool = False

    @property
    def path(self) -> str:
        """As gRPC names it on the wire."""
        return f"/{self.service}/{self.name}"


def deadline_exceeded(allowed_s: float) -> ServeError:
    """The error of a call whose deadline has passed."""
    return ServeError(Reason.DEADLINE_EXCEEDED, f"not done within the {allowed_s:.3f} s allowed")


class Expired(Exception):  # noqa: N818 - the moment has come; nothing has failed
    """The moment of an Expiry has come."""


class Expiry:
    """Interrupts a task's waits when a moment comes, but never its writes: a cancelled write leaves its message half sent.

    One timer a call, however many waits. `on_expiry` is called at the moment, whatever the task does then.
    """

    def __init__(self, when_s: float, on_expiry: Callable[[], None]) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an Expiry belongs to a task")
        self._task = task
        self._on_expiry = on_expiry
        self._waiting = False
        self._interrupted = False
        self.expired = False
        self._timer = asyncio.get_running_loop().call_at(when_s, self._expire)

    async def wait(self, coroutine: Awaitable[T]) -> T:
        """Awaits. Raises Expired where the moment comes first."""
        self._waiting = True
        try:
            return await coroutine
        except asyncio.CancelledError:
            if self._interrupted and self._task.uncancel() == 0:
                raise Expired from None
            raise
        finally:
            self._waiting = False

    def close(self) -> None:
        """Stops the timer."""
        self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        if self._waiting:
            self._interrupted = True
            self._task.cancel()
        self._on_expiry()
