"""What is asked of every system alike: the same prompts, as token ids, in the same order, by the same number of streams."""

from dataclasses import asdict, dataclass, replace

from neox_serve.loadgen.arrivals import ClosedLoop, OpenLoop
from neox_serve.loadgen.load import Load
from neox_serve.loadgen.workloads import Synthetic


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop of `streams` callers, `requests` in all; lengths are fixed.

    rate_rps: instead, an open loop of Poisson arrivals at this many requests a second, alike for all systems.
    """

    name: str
    streams: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    vocabulary_size: int
    round: int = 0
    rate_rps: float | None = None

    def __post_init__(self) -> None:
        if self.requests < self.streams:
            raise ValueError(f"{self}: needs a request for each stream")

    def in_round(self, number: int) -> "Workload":
        """The same with the prompts of another round."""
        return replace(self, round=number)

    def prompts(self) -> Synthetic:
        """What is asked."""
        values = {name: value for name, value in asdict(self).items() if name not in {"streams", "requests", "rate_rps"}}
        return Synthetic(count=self.requests, **values)

    def load(self) -> Load:
        """A run of it."""
        if self.rate_rps is not None:
            return Load(self.prompts(), OpenLoop(self.rate_rps), seed=self.round)
        return Load(self.prompts(), ClosedLoop(self.streams))

    def warm_up(self) -> Load:
        """One short request a stream."""
        return Load(self.prompts().warm_up(self.streams), ClosedLoop(self.streams))
