"""What the bench and its load generator's process tell each other, pickled over a socket pair."""

from dataclasses import dataclass

from neox_serve.loadgen.records import Record
from neox_serve.loadgen.targets import TargetSpec
from neox_serve.loadgen.workloads import Workload


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

    workload: Workload


@dataclass(frozen=True, slots=True)
class Progress:
    """From the generator: so many requests have ended."""

    ended: int


@dataclass(frozen=True, slots=True)
class Ended:
    """From the generator: the last request has ended; the records follow."""


@dataclass(frozen=True, slots=True)
class Records:
    """From the generator: the run's records, in the order of the prompts."""

    records: list[Record]


@dataclass(frozen=True, slots=True)
class Failed:
    """From the generator, last: it cannot go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """To the generator: disconnect and exit."""
