"""Messages between a load generator's process and its caller, pickled over a socket pair.

The records follow `Ended`, as an `Outcome`.
"""

from dataclasses import dataclass

from neox_serve.loadgen.load import Load
from neox_serve.loadgen.targets import TargetSpec


@dataclass(frozen=True, slots=True)
class Connect:
    """To the generator: the first message, names the target to connect to."""

    target: TargetSpec


@dataclass(frozen=True, slots=True)
class Ready:
    """From the generator: it is connected."""


@dataclass(frozen=True, slots=True)
class Run:
    """To the generator: run a load now."""

    load: Load


@dataclass(frozen=True, slots=True)
class Interrupt:
    """To the generator: end the current run now, if there is one."""


@dataclass(frozen=True, slots=True)
class Progress:
    """From the generator: number of requests that have ended."""

    ended: int


@dataclass(frozen=True, slots=True)
class Ended:
    """From the generator: the last request has ended; the records follow."""


@dataclass(frozen=True, slots=True)
class Failed:
    """From the generator: it failed and exits. This is its last message."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """To the generator: disconnect and exit."""
