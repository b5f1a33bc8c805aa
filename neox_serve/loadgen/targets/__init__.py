"""What the load generator can drive. A target keeps payloads raw while it is timed, and decodes them afterwards."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from neox_serve.loadgen.records import Response
from neox_serve.loadgen.workloads import Prompt

Stamp = Callable[[Any], None]
"""Takes each payload the moment it arrives."""

Stamped = list[tuple[float, Any]]
"""Payloads with their times."""


class TargetError(Exception):
    """A request that the system refused or broke off; the message says how, in the same words each time."""


class Target(Protocol):
    """A connection to a system."""

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """Asks for exactly this many greedy tokens and stamps what comes; returns at the end. Raises where it ends badly."""

    def decode(self, stamped: Sequence[tuple[float, Any]]) -> Response:
        """The tokens in what was stamped. Raises ValueError where it makes no sense."""


class TargetSpec(Protocol):
    """How to connect; goes to the load generator's process, so it can be pickled."""

    def connect(self) -> AbstractAsyncContextManager[Target]:
        """A connection for as long as the block lasts."""
