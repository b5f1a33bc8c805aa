"""One generation as its reader sees it: deltas until the end, whichever replica produces them.

The states are those of the table in `core.generation.request_life`. Deltas that arrive before they are read are kept; the request's maximum
output bounds them. If the replica is lost, the request moves to another one while the reader waits: always if nothing has been delivered
yet, otherwise if another replica can continue from the tokens delivered so far.
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
"""Places a request on a replica that is not among the given ids. Raises ServeError."""


class RoutedStream:
    """Implements `protocol.TokenStream`. It must be read to its end or cancelled; otherwise its lease is never settled.

    place: places the request on a replica. settle: ends a lease. on_end: called once, at the end. clock: monotonic seconds. on_placed:
    called with the lease of each placement.
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
        self._arrived_at_s = clock()
        self._first_token_at_s: float | None = None
        self._cached_tokens = 0
        self._output_tokens = 0
        self._delivered: list[int] | None = [] if is_continuable(request) else None
        self._original = request
        self._loss: ServeError | None = None
        self._lost_at_s: float | None = None
        self.gaps_s: list[float] = []
        """Seconds from each loss of a replica to the first output of the next one."""
        self.admission_s = 0.0
        """Seconds spent waiting for replicas to be granted."""

    @property
    def replica_id(self) -> str:
        """Id of the replica that runs the request, or ran it last; empty before the first placement."""
        return self._placement.lease.replica_id if self._placement else ""

    @property
    def explanation(self) -> str:
        """How that replica was chosen, for logs and traces."""
        return self._placement.explanation if self._placement else ""

    @property
    def predicted_cached_tokens(self) -> int | None:
        """Prompt tokens that this replica's prefix cache was expected to hold; None if nothing was known of its cache."""
        placement = self._placement
        return placement.lease.cached_tokens if placement and placement.predicted else None

    async def open(self) -> None:
        """Places the request on a replica and sends it. Adds the seconds it took to `admission_s`.

        Raises ServeError: REPLICA_LOST if output has been delivered and no other replica can continue.
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
        """Returns all deltas since the last call; waits for at least one. The last delta has `end` set.

        direct: called with each delta that arrives during the wait, except the last. If it returns True it has consumed the delta, which is
        then not returned, and the wait goes on. Raises ServeError if the request was cancelled or has failed, after all deltas before that,
        and whatever `direct` raises. Cancelling this call does not affect the request.
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
        """Ends the request and frees its resources; a reader gets ServeError(CANCELLED). Idempotent; does nothing after the end."""
        self._happen(RequestEvent.CANCELLED, ServeError(Reason.CANCELLED, "the request was cancelled"))
        if self._move is not None:
            self._move.cancel()

    def preempt(self) -> None:
        """Gives the replica up and waits for another one, unless output has arrived."""
        if self._stage is Stage.WAITING:
            self._happen(RequestEvent.YIELDED)

    def push(self, delta: Delta) -> None:
        """Handles a delta from the link."""
        for sequence in delta.sequences:
            self._output_tokens += len(sequence.token_ids)
            if self._delivered is not None:
                self._delivered += sequence.token_ids
        if delta.prompt is not None:
            delta = self._note_prompt(delta, delta.prompt)
        if delta.failure is not None:
            self._fail(delta.failure)
        elif self._stage is Stage.STREAMING and not delta.end:  # token path: the table's step would change nothing
            if not self._passed_on(delta):
                self._deltas.append(delta)
                self._wake()
        elif self._stage is not Stage.ENDED:
            self._deltas.append(delta)
            self._happen(RequestEvent.FINISHED if delta.end else RequestEvent.DELIVERED)

    def _passed_on(self, delta: Delta) -> bool:
        """Offers the delta to the waiting reader, and returns whether it was consumed.

        An exception of the reader is raised in its own call only, because the link serves other requests too.
        """
        if self._direct is None or self._reader is None or self._reader.done():
            return False
        try:
            return self._direct(delta)
        except Exception as fault:  # noqa: BLE001 - boundary between this request and the others on the link
            self._reader.set_exception(fault)
            return True

    def _note_prompt(self, delta: Delta, prompt: PromptFacts) -> Delta:
        """Handles the first delta of a replica.

        Removes the prompt facts if it is not the first replica, because the reader has them already.
        """
        self._cached_tokens = prompt.cached_tokens
        now_s = self._clock()
        if self._first_token_at_s is None:
            self._first_token_at_s = now_s
        if self._lost_at_s is None:
            return delta
        self.gaps_s.append(now_s - self._lost_at_s)
        self._lost_at_s = None
        _log.info("request_continued", request_id=self._original.request_id, replica_id=self.replica_id, gap_s=round(self.gaps_s[-1], 4))
        return replace(delta, prompt=None)

    def _fail(self, failure: ServeError) -> None:
        event = event_of_failure(failure, self._failed, continuable=bool(self._delivered))
        self._failed = (*self._failed, self.replica_id)
        if event is not RequestEvent.CONTINUABLE:
            self._happen(event, failure)
        elif (rest := continued(self._original, self._delivered or ())) is not None:
            self._continue_with(rest, failure)
        else:  # all tokens were delivered; only the final delta was lost
            self._deltas.append(Delta(0, (SequenceDelta(0, "", (), finish=Finish(FinishReason.LENGTH)),), end=True))
            self._happen(RequestEvent.FINISHED)

    def _continue_with(self, rest: GenerationRequest, failure: ServeError) -> None:
        """Continues on another replica. Counts the prompt as cached there, so that the tenant is charged for it only once."""
        self._lost_at_s = self._clock() if self._lost_at_s is None else self._lost_at_s
        self._cached_tokens = len(self._request.prompt_token_ids)
        self._request, self._loss = rest, failure
        self._happen(RequestEvent.CONTINUABLE, failure)

    def _take_place(self, placement: Placement) -> None:
        if self._stage is not Stage.ADMITTING:  # cancelled in the meantime
            self._settle(Settled(placement.lease.lease_id))
            if self._error is not None:
                raise self._error
            return
        self._placement, self._failed = placement, placement.failed
        self._on_placed(placement.lease, self)
        self._happen(RequestEvent.GRANTED)

    def _happen(self, event: RequestEvent, error: ServeError | None = None) -> None:
        """Makes the table's transition and carries out its actions."""
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
            case _:  # ADMIT: done by the reader's next call
                pass

    def _timings(self) -> RequestTimings | None:
        """Returns the timings of the response, over all replicas; None for beam search, whose output arrives all at once."""
        if self._first_token_at_s is None or self._original.beam is not None:
            return None
        tokens = (self._output_tokens if self._delivered is None else len(self._delivered)) / self._original.n
        writing_s = self._clock() - self._first_token_at_s
        return RequestTimings(self._first_token_at_s - self._arrived_at_s, writing_s / (tokens - 1) if tokens > 1 else None)

    def _submit(self, placement: Placement) -> None:
        try:
            placement.link.generate(placement.lease.lease_id, self._request, self)
        except ServeError as error:  # the link broke in this turn of the event loop
            self._fail(error)

    async def _moved(self) -> None:
        """Places the request on another replica, in a task that survives the cancellation of `next`."""
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
