"""The decisions of a streamed generation: what each message and each failure means. Pure; the streams do the waiting and reading."""

from dataclasses import dataclass, field
from typing import Any

import grpc

from neox_serve.client.calls import ApiCall
from neox_serve.client.connection import translate
from neox_serve.client.results import StreamEvent, StreamFinal
from neox_serve.client.retry import Attempts
from neox_serve.core.errors import Reason, ServeError


@dataclass(slots=True)
class StreamState:
    """One streamed generation."""

    call: ApiCall[StreamEvent]
    attempts: Attempts
    address: str
    ended: bool = field(default=False, init=False)
    """Set at the end of the stream, whether it succeeded, failed or was closed by the caller. Nothing is read after that."""
    final: StreamFinal | None = field(default=None, init=False)
    """The final event, once it has arrived."""
    _started: bool = field(default=False, init=False)

    def on_message(self, message: Any) -> StreamEvent:
        """Returns the event that the message holds. Raises ServeError for one that this client does not know."""
        self._started = True
        event = self.call.read(message)
        if isinstance(event, StreamFinal):
            self.final = event
        return event

    def on_end(self) -> None:
        """The call has ended with status OK. Raises ServeError if the final event is missing."""
        is_cut_short = self.final is None and not self.ended
        self.ended = True
        if is_cut_short:
            raise ServeError(Reason.INTERNAL, "the stream ended without its final event")

    def on_failure(self, error: grpc.RpcError, now_s: float) -> float:
        """The call has failed. Returns the seconds to wait before starting it again; raises the ServeError if it must not be started again.

        A stream is never restarted after its first event.
        """
        translated = translate(error, self.address)
        delay_s = None if self._started else self.attempts.delay_s(translated, now_s)
        if delay_s is None:
            self.ended = True
            raise translated from error
        return delay_s
