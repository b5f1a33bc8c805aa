"""What a stream does with each thing that can happen to it. Shared by both clients, which only read, wait and start calls."""

from dataclasses import dataclass, field
from typing import Any

import grpc

from neox_serve.client.calls import Call
from neox_serve.client.connection import translate
from neox_serve.client.results import StreamEvent, StreamFinal
from neox_serve.client.retry import Attempts
from neox_serve.core.errors import Reason, ServeError


@dataclass(slots=True)
class StreamState:
    """One streamed generation. `over` is set at its end, good or bad, and by the caller who closes it; nothing is read after that."""

    call: Call[StreamEvent]
    attempts: Attempts
    address: str
    over: bool = field(default=False, init=False)
    final: StreamFinal | None = field(default=None, init=False)
    _started: bool = field(default=False, init=False)

    def message(self, message: Any) -> StreamEvent:
        """A message has come. Raises ServeError for one that this client does not know."""
        self._started = True
        event = self.call.read(message)
        if isinstance(event, StreamFinal):
            self.final = event
        return event

    def ended(self) -> None:
        """The call has ended with OK. Raises ServeError where the final event is missing."""
        cut_short = self.final is None and not self.over
        self.over = True
        if cut_short:
            raise ServeError(Reason.INTERNAL, "the stream ended without its final event")

    def failed(self, error: grpc.RpcError, now_s: float) -> float:
        """The call has failed. Returns the seconds to wait before it is started again; raises its ServeError where it is not."""
        translated = translate(error, self.address)
        delay_s = None if self._started else self.attempts.delay_s(translated, now_s)
        if delay_s is None:
            self.over = True
            raise translated from error
        return delay_s
