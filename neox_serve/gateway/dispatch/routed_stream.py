"""One generation as its reader sees it: deltas until the end, on whichever replica. Its life is the table in core.generation.request_life.

What arrives before it is read is kept; the request's own limit on output bounds it. A request whose replica is lost is moved to another
while the reader waits, before anything arrived always, and after that where the other can go on from there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from neox_serve.core.cluster import Lease, RequestTimings, Settled
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.generation.continuation import continued, is_continuable
from neox_serve.core.generation.request_life import Action, RequestEvent, Stage, event_of_failure, step
from neox_serve.core.types import Delta, DirectSink, Finish, FinishReason, GenerationRequest, PromptFacts, SequenceDelta
from neox_serve.gateway.dispatch.placement import Placement

_log = structlog.get_logger(__name__)


Place = Callable[[GenerationRequest, tuple[str, ...]], Awaitable[Placement]]
"""Leases a replica for a request that is not among those given, and waits for its link. Raises ServeError."""


class RoutedStream:
    """A stream of deltas. It must be read to its end or cancelled, or its lease stays out.

    place: finds a replica. settle: gives a lease back. on_end: called once, at the end. clock: seconds,
    steady. on_placed: told of each replica that it gets. gaps_s: how long its reader waited for each replica that went on with it, from
    the loss of the one before.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        place: Place,
        settle: Callable[[Settled], None],
        on_end: Callable[[], None],
        clock: Callable[[], float],
        on_placed: Callable[[Lease, "RoutedStream"], None] = lambda _lease, _stream: None,
    ) -> None:
        self._request = request
        self._place = place
        self._settle = settle
        self._on_end = on_end
        self._clock = clock
        self._on_placed = on_placed
        self._stage = Stage.ADMITTING
        self._placement: Placement | None = None
        self._failed: tuple[str, ...] = ()
        self._deltas: list[Delta] = []
        self._error: ServeError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._direct: DirectSink | None = None
        self._move: asyncio.Task[None] | None = None
        self._came_at_s = clock()
        self._first_token_at_s: float | None = None
        self._cached_tokens = 0
        self._output_tokens = 0
        self._delivered: list[int] | None = [] if is_continuable(request) else None
        self._whole = request
        self._loss: ServeError | None = None
        self._lost_at_s: float | None = None
        self.gaps_s: list[float] = []
        self.admission_s = 0.0

    @property
    def replica_id(self) -> str:
        """The replica that serves the request now, or did last; empty before the first."""
        return self._placement.lease.replica_id if self._placement else ""

    @property
    def explanation(self) -> str:
        """How it came to that replica, for people."""
        return self._placement.explanation if self._placement else ""

    @property
    def predicted_cached_tokens(self) -> int | None:
        """Of the prompt, what that replica was thought to have cached; None where nothing was known."""
        placement = self._placement
        return placement.lease.cached_tokens if placement and placement.predicted else None

    async def open(self) -> None:
        """Admits and sends the request. `admission_s` grows by the seconds it took.

        Raises ServeError; REPLICA_LOST where something was delivered and nobody goes on with it.
        """
        started_s = self._clock()
        try:
            placement = await self._place(self._request, self._failed)
        except ServeError as refusal:
            error = refusal if self._loss is None else replace(self._loss, retry_after_s=refusal.retry_after_s)
            self._happen(RequestEvent.REFUSED, error)
            raise error from None
        except BaseException:
            self.cancel()
            raise
        self.admission_s += self._clock() - started_s
        self._take_place(placement)

    async def next(self, direct: DirectSink | None = None, /) -> Sequence[Delta]:
        """All deltas since the last call, at least one; waits for it. The last delta has `end` set.

        direct: is offered deltas that come while this waits, but for the last; what it takes is not returned, and the wait goes on.
        Raises ServeError where the request was cancelled, or failed (after the deltas before), and what `direct` raises. Cancelling this
        call changes nothing.
        """
        while not self._deltas:
            if self._error is not None:
                raise self._error
            if self._stage is Stage.ENDED:
                raise RuntimeError("the stream was read past its end")
            if self._stage is Stage.ADMITTING:
                await self._moved()
            else:
                await self._news(direct)
        deltas, self._deltas = self._deltas, []
        return deltas

    def cancel(self) -> None:
        """Ends the request and frees its resources; a reader gets ServeError(CANCELLED). Again, or after the end, it does nothing."""
        self._happen(RequestEvent.CANCELLED, ServeError(Reason.CANCELLED, "the request was cancelled"))
        if self._move is not None:
            self._move.cancel()

    def preempt(self) -> None:
        """Goes back to wait for a replica, unless something has been delivered."""
        if self._stage is Stage.WAITING:
            self._happen(RequestEvent.YIELDED)

    def push(self, delta: Delta) -> None:
        """Takes a delta from the link."""
        for sequence in delta.sequences:
            self._output_tokens += len(sequence.token_ids)
            if self._delivered is not None:
                self._delivered += sequence.token_ids
        if delta.prompt is not None:
            delta = self._note_prompt(delta, delta.prompt)
        if delta.failure is not None:
            self._fail(delta.failure)
        elif self._stage is Stage.STREAMING and not delta.end:  # the token path: the table's step would change nothing
            if not self._passed_on(delta):
                self._deltas.append(delta)
                self._wake()
        elif self._stage is not Stage.ENDED:
            self._deltas.append(delta)
            self._happen(RequestEvent.FINISHED if delta.end else RequestEvent.DELIVERED)

    def _passed_on(self, delta: Delta) -> bool:
        """Whether the reader, if it still waits, has taken the delta. A fault of its is raised to it alone: the link serves others too."""
        if self._direct is None or self._reader is None or self._reader.done():
            return False
        try:
            return self._direct(delta)
        except Exception as fault:  # noqa: BLE001 - the boundary between one request and all others of its link
            self._reader.set_exception(fault)
            return True

    def _note_prompt(self, delta: Delta, prompt: PromptFacts) -> Delta:
        """The first delta of a replica; of the replicas after the first its reader hears nothing about the prompt."""
        self._cached_tokens = prompt.cached_tokens
        now_s = self._clock()
        if self._first_token_at_s is None:
            self._first_token_at_s = now_s
        if self._lost_at_s is None:
            return delta
        self.gaps_s.append(now_s - self._lost_at_s)
        self._lost_at_s = None
        _log.info("request_continued", request_id=self._whole.request_id, replica_id=self.replica_id, gap_s=round(self.gaps_s[-1], 4))
        return replace(delta, prompt=None)

    def _fail(self, failure: ServeError) -> None:
        event = event_of_failure(failure, self._failed, continuable=bool(self._delivered))
        self._failed = (*self._failed, self.replica_id)
        if event is not RequestEvent.CONTINUABLE:
            self._happen(event, failure)
        elif (rest := continued(self._whole, self._delivered or ())) is not None:
            self._continue_with(rest, failure)
        else:  # only the word that it has ended was lost
            self._deltas.append(Delta(0, (SequenceDelta(0, "", (), finish=Finish(FinishReason.LENGTH)),), end=True))
            self._happen(RequestEvent.FINISHED)

    def _continue_with(self, rest: GenerationRequest, failure: ServeError) -> None:
        """Goes on elsewhere. The prompt was paid for once: that the next replica reads it again is not its tenant's doing."""
        self._lost_at_s = self._clock() if self._lost_at_s is None else self._lost_at_s
        self._cached_tokens = len(self._request.prompt_token_ids)
        self._request, self._loss = rest, failure
        self._happen(RequestEvent.CONTINUABLE, failure)

    def _take_place(self, placement: Placement) -> None:
        if self._stage is not Stage.ADMITTING:  # cancelled meanwhile
            self._settle(Settled(placement.lease.lease_id))
            if self._error is not None:
                raise self._error
            return
        self._placement, self._failed = placement, placement.failed
        self._on_placed(placement.lease, self)
        self._happen(RequestEvent.GRANTED)

    def _happen(self, event: RequestEvent, error: ServeError | None = None) -> None:
        """Takes the table's step and carries out its actions."""
        taken = step(self._stage, event)
        self._stage = taken.stage
        for action in taken.actions:
            self._carry_out(action, error)
        self._wake()

    def _carry_out(self, action: Action, error: ServeError | None) -> None:
        placement = self._placement
        match action:
            case Action.SUBMIT if placement:
                self._submit(placement)
            case Action.ABORT if placement:
                placement.link.cancel(placement.lease.lease_id)
            case Action.SETTLE if placement:
                timings = self._timings() if self._stage is Stage.ENDED and error is None else None
                self._settle(Settled(placement.lease.lease_id, self._cached_tokens, self._output_tokens, timings))
                self._cached_tokens = self._output_tokens = 0
            case Action.TERMINATE:
                self._error = error
                self._on_end()
            case _:  # ADMIT: the reader's next call does it
                pass

    def _timings(self) -> RequestTimings | None:
        """Of the whole answer, over all replicas. Beams come all at once, and say nothing of it."""
        if self._first_token_at_s is None or self._whole.beam is not None:
            return None
        tokens = (self._output_tokens if self._delivered is None else len(self._delivered)) / self._whole.n
        writing_s = self._clock() - self._first_token_at_s
        return RequestTimings(self._first_token_at_s - self._came_at_s, writing_s / (tokens - 1) if tokens > 1 else None)

    def _submit(self, placement: Placement) -> None:
        try:
            placement.link.generate(placement.lease.lease_id, self._request, self)
        except ServeError as error:  # the link broke in this very turn of the loop
            self._fail(error)

    async def _moved(self) -> None:
        """Opens the request on another replica, in a task that outlives a cancelled call of `next`."""
        if self._move is None:
            self._move = asyncio.ensure_future(self.open())
        await asyncio.wait((self._move,))
        if not self._move.cancelled():
            self._move.exception()  # kept in self._error
        self._move = None

    async def _news(self, direct: DirectSink | None) -> None:
        self._reader, self._direct = asyncio.get_running_loop().create_future(), direct
        try:
            await self._reader
        finally:
            self._reader = self._direct = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
