"""What a load generator's process and whoever started it tell each other, pickled over a socket pair.

Records come as an `Outcome`, after `Ended`.
"""

from dataclasses import dataclass

from neox_serve.loadgen.load import Load
from neox_serve.loadgen.targets import TargetSpec


@dataclass(frozen=True, slots=True)
class Connect:
    """To the generator, first."""

    target: TargetSpec


@dataclass(frozen=True, slots=True)
class Ready:
    """From the generator: connected."""


@dataclass(frozen=True, slots=True)
class Run:
    """To the generator: run this now."""

    load: Load


@dataclass(frozen=True, slots=True)
class Interrupt:
    """To the generator: end the run now, if there still is one."""


@dataclass(frozen=True, slots=True)
class Progress:
    """From the generator: so many requests have ended."""

    ended: int


@dataclass(frozen=True, slots=True)
class Ended:
    """From the generator: the last request has ended; the records follow."""


@dataclass(frozen=True, slots=True)
class Failed:
    """From the generator, last: it cannot go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """To the generator: disconnect and exit."""
