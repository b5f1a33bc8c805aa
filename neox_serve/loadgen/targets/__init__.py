"""Systems that the load generator can drive. A target keeps payloads raw during the run and decodes them afterwards."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from neox_serve.loadgen.records import Response
from neox_serve.loadgen.workloads import Prompt

Stamp = Callable[[Any], None]
"""Called with each payload when it arrives."""

Stamped = list[tuple[float, Any]]
"""Payloads with their arrival times."""


class TargetError(Exception):
    """The system refused or aborted a request. Equal failures have equal messages."""


class Target(Protocol):
    """A connection to a system."""

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """Requests exactly `output_tokens` greedy tokens and stamps each payload. Returns at the end; raises if the request fails."""

    def decode(self, stamped: Sequence[tuple[float, Any]]) -> Response:
        """Decodes the stamped payloads. Raises ValueError for malformed ones."""


class TargetSpec(Protocol):
    """How to connect to a system. It is pickled and sent to the load generator's process."""

    def connect(self) -> AbstractAsyncContextManager[Target]:
        """Context manager for a connection."""
