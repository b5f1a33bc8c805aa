"""The state of one call in the gateway, split by subject: identity, deadline, progress and accounting.

Each part has one writer: the runner sets the identity, the handlers and the requests package report progress, and the parts that reserve
quota or count tokens write the accounting.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from opentelemetry.trace import INVALID_SPAN, Span

from neox_serve.core.cluster import Terms
from neox_serve.core.errors import ServeError
from neox_serve.core.generation.call_life import CallEvent, CallLife
from neox_serve.core.tenancy.tenant_directory import UNKNOWN_CALLER, Principal
from neox_serve.core.tenancy.tenants import PriorityClass, Tenant
from neox_serve.gateway.dispatch.protocol import ReservationHandle
from neox_serve.gateway.server.deadlines import Deadline
from neox_serve.gateway.server.decoding import Decoder
from neox_serve.telemetry.tracing import traceparent
from neox_serve.transport.call import ServerCall
from neox_serve.v1 import generation_pb2
from neox_serve.wire.public_messages import duration

Context = ServerCall


@dataclass(slots=True)
class TokenCount:
    """Tokens of a call or of one of its prompts."""

    prompt: int = 0
    """Tokens of the prompts, after truncation."""
    cached: int = 0
    """Prompt tokens that the engine took from its prefix cache."""
    completion: int = 0
    """Tokens generated, over all completions."""
    truncated: int = 0
    """Prompt tokens that were cut off to fit the context."""

    @property
    def used(self) -> int:
        """Tokens that count against quotas."""
        return self.prompt + self.completion

    def add(self, other: "TokenCount") -> None:
        """Adds another count to this one."""
        self.prompt += other.prompt
        self.cached += other.cached
        self.completion += other.completion
        self.truncated += other.truncated

    def message(self) -> generation_pb2.Usage:
        """Returns the public message."""
        return generation_pb2.Usage(
            prompt_tokens=self.prompt, cached_tokens=self.cached, completion_tokens=self.completion, truncated_tokens=self.truncated
        )


@dataclass(frozen=True, slots=True)
class CallIdentity:
    """Who makes a call, and what the call asks for. The runner replaces it once the caller and then the message are known."""

    method: str
    """Full gRPC path of the method."""
    request_id: str
    """The client's id, or a random one if the client sent none."""
    principal: Principal = UNKNOWN_CALLER
    """The authenticated caller. UNKNOWN_CALLER, which has no rights, until then."""
    priority: PriorityClass = PriorityClass.DEFAULT
    """Class that the call runs in."""
    priority_lowered: bool = False
    """Whether the client asked for a higher class than its tenant may use."""
    adapter: str = ""
    """Name of the requested adapter; empty for the base model."""
    session: str = ""
    """Session that groups the tenant's calls for routing; empty if the client sent none."""

    @property
    def tenant(self) -> Tenant:
        """Tenant of the caller."""
        return self.principal.tenant

    @property
    def routing_session(self) -> str:
        """The session prefixed with the tenant, so that tenants never share one; empty if the call has no session."""
        return f"{self.tenant.name}/{self.session}" if self.session else ""


@dataclass(slots=True)
class CallProgress:
    """How far a call has come. Times are of the event loop's clock; None means that it has not happened."""

    life: CallLife = field(default_factory=CallLife)
    """Phase of the call, which ends exactly once."""
    tokenization_s: float | None = None
    """Seconds that tokenization took."""
    admission_s: float | None = None
    """Seconds until an engine was assigned; the slowest of several prompts."""
    first_token_at_s: float | None = None
    """When the first token arrived."""
    last_token_at_s: float | None = None
    """When the latest token arrived."""
    write_began_at_s: float | None = None
    """When the write that now waits for the client began; None while no write waits."""
    partial: bool = False
    """Whether the deadline came and the response holds only what was generated until then."""
    replica_id: str = ""
    """Replica that was assigned last; empty before."""
    routes: list[str] = field(default_factory=list)
    """For each prompt, which replica it was sent to and why."""
    gaps_s: list[float] = field(default_factory=list)
    """Seconds of silence for each lost replica that was replaced in the middle of a stream."""

    def admitted(self, admission_s: float, replica_id: str, explanation: str = "") -> None:
        """Records that one of the prompts was assigned to a replica."""
        self.life.advance(CallEvent.ADMIT)
        self.replica_id = replica_id
        self.routes.append(f"replica={replica_id} {explanation}".rstrip())
        self.admission_s = max(self.admission_s or 0.0, admission_s)

    def tokens_arrived(self, now_s: float) -> None:
        """Records that the engine has sent tokens."""
        if self.first_token_at_s is None:
            self.first_token_at_s = now_s
            self.life.advance(CallEvent.OUTPUT)
        self.last_token_at_s = now_s


@dataclass(slots=True)
class CallAccounting:
    """What a call is charged for."""

    model: str = ""
    """Model that serves the call; empty if it uses none."""
    tokens: TokenCount = field(default_factory=TokenCount)
    """Tokens of all prompts and completions so far."""
    reservation: ReservationHandle | None = None
    """Quota reserved for the call; None before a reservation is made."""
    predictions: list[tuple[int, int]] = field(default_factory=list)
    """For each prompt, the cached tokens that the router predicted and those that the engine found."""

    def settle(self, used_tokens: int) -> None:
        """Replaces the reservation by the tokens used. Has no effect without a reservation, or the second time."""
        if self.reservation is not None:
            self.reservation.settle(used_tokens)


@dataclass(slots=True, eq=False)
class Call:
    """One call: its parts, and the task that runs it."""

    identity: CallIdentity
    """Who makes the call, and what it asks for."""
    deadline: Deadline
    """When it arrived and when it must end."""
    task: "asyncio.Task[Any]"
    """Runs the call; `interrupt` cancels it."""
    progress: CallProgress = field(default_factory=CallProgress)
    """How far it has come."""
    accounting: CallAccounting = field(default_factory=CallAccounting)
    """What it is charged for."""
    span: Span = INVALID_SPAN
    """Trace span of the call."""
    interruption: ServeError | None = None
    """Why the gateway cancelled the call; None if it did not."""
    idempotency_key: str = ""
    """Key that identifies repeats of the call across gateways; empty if the client sent no request id."""
    takes_over: bool = False
    """Whether the gateway that the router names as owner of the key no longer knows it, so that this one becomes the owner."""
    replayed: bool = False
    """Whether the response is that of another call with the same idempotency key."""

    @property
    def method(self) -> str:
        """Full gRPC path of the method."""
        return self.identity.method

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return self.identity.request_id

    @property
    def principal(self) -> Principal:
        """The authenticated caller, or UNKNOWN_CALLER."""
        return self.identity.principal

    @property
    def tenant(self) -> Tenant:
        """Tenant of the caller."""
        return self.identity.tenant

    def terms(self, now_s: float) -> Terms:
        """Returns the account, urgency and trace of the call for the router."""
        return Terms(
            self.tenant.name,
            self.tenant.weight,
            self.identity.priority,
            self.deadline.left_s(now_s),
            traceparent=traceparent(self.span),
            idempotency_key=self.idempotency_key,
            takes_over=self.takes_over,
        )

    def interrupt(self, error: ServeError) -> None:
        """Cancels the call, which then ends with this error. Only the first interruption counts."""
        if self.interruption is None and not self.progress.life.ended:
            self.interruption = error
            self.task.cancel()

    def timings(self, now_s: float) -> generation_pb2.Timings:
        """Returns the public message with the time spent in each stage so far."""
        progress, arrived_at_s = self.progress, self.deadline.arrived_at_s
        timings = generation_pb2.Timings(total=duration(now_s - arrived_at_s))
        if progress.tokenization_s is not None:
            timings.tokenization.CopyFrom(duration(progress.tokenization_s))
        if progress.admission_s is not None:
            timings.admission.CopyFrom(duration(progress.admission_s))
        if progress.first_token_at_s is not None:
            timings.first_token.CopyFrom(duration(progress.first_token_at_s - arrived_at_s))
        return timings


class StreamWriter:
    """Writes the messages of a streamed response, and records when a write began, so that a client that never reads can be cut off."""

    def __init__(self, call: Call, context: Context, record: Callable[[bytes], None] | None = None) -> None:
        """`record` is called with every message before it is written."""
        self._progress = call.progress
        self._context = context
        self._record = record
        self._clock = asyncio.get_running_loop().time

    @property
    def busy(self) -> bool:
        """Whether an earlier message still waits for the client."""
        return bool(self._context.unsent)

    def put(self, message: bytes) -> None:
        """Writes one message without waiting for the client. Use `write` while the writer is busy."""
        if self._record is not None:
            self._record(message)
        self._context.put(message)

    async def write(self, message: bytes) -> None:
        """Writes one message and waits while the client reads too slowly."""
        if self._record is not None:
            self._record(message)
        self._progress.write_began_at_s = self._clock()
        await self._context.write(message)
        self._progress.write_began_at_s = None


UnaryHandler = Callable[[Call, Any], Awaitable[Message]]
StreamHandler = Callable[[Call, Any, StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. Exactly one of the two handlers is set."""

    service: str
    """Full name of the service."""
    name: str
    """Name of the RPC."""
    decoder: Decoder[Any]
    """Decodes and checks the size of the request message."""
    unary: UnaryHandler | None = None
    """Handler of a unary RPC."""
    stream: StreamHandler | None = None
    """Handler of an RPC with a streamed response."""
    bounded: bool = True
    """Whether its calls count against the concurrency limit and are refused while the gateway drains."""
    metered: bool = False
    """Whether its calls use the model, so that they leave a usage record and are idempotent by request id."""

    @property
    def path(self) -> str:
        """Full gRPC path."""
        return f"/{self.service}/{self.name}"
