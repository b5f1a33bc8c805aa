"""What the ladder and its client process tell each other, pickled over a socket pair; the rest is as with the load generator."""

from array import array
from dataclasses import dataclass

from tests.bench.records import Record
from tests.bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class Order:
    """To the client: connect for this workload. channels: connections. stalled: a further client, which never reads, beside it.

    ramp_tokens: first tokens of each response whose lag does not count, because all streams start at once as no real ones do.
    """

    workload: Workload
    channels: int = 1
    stalled: bool = False
    ramp_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Go:
    """To the client, once it is Ready: run what was ordered."""


@dataclass(frozen=True, slots=True)
class Result:
    """From the client, after Ended. records: in the order of the prompts. lags_s: of every token after the ramp, in no order."""

    records: list[Record]
    lags_s: "array[float]"
