"""The workloads that every system gets: the same prompts as token ids, in the same order, with the same number of streams."""

from dataclasses import asdict, dataclass, replace

from neox_serve.loadgen.arrivals import ClosedLoop, OpenLoop
from neox_serve.loadgen.load import Load
from neox_serve.loadgen.workloads import Synthetic


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop or, if `rate_rps` is set, an open loop. Raises ValueError if there are fewer requests than streams."""

    name: str
    """Name in tables and results."""
    streams: int
    """Number of concurrent requests of the closed loop."""
    requests: int
    """Total number of requests."""
    prompt_tokens: int
    """Length of each prompt."""
    output_tokens: int
    """Length of each answer."""
    vocabulary_size: int
    """Size of the vocabulary from which prompts are drawn."""
    round: int = 0
    """Round of the comparison. Each round has different prompts."""
    rate_rps: float | None = None
    """Rate of the open loop in requests per second, with the same Poisson arrivals for all systems; None for a closed loop."""

    def __post_init__(self) -> None:
        if self.requests < self.streams:
            raise ValueError(f"{self} is invalid; it must have at least one request per stream")

    def in_round(self, number: int) -> "Workload":
        """Returns the same workload with the prompts of another round."""
        return replace(self, round=number)

    def prompts(self) -> Synthetic:
        """Returns the prompts."""
        values = {name: value for name, value in asdict(self).items() if name not in {"streams", "requests", "rate_rps"}}
        return Synthetic(count=self.requests, **values)

    def load(self) -> Load:
        """Returns the load for the load generator."""
        if self.rate_rps is not None:
            return Load(self.prompts(), OpenLoop(self.rate_rps), seed=self.round)
        return Load(self.prompts(), ClosedLoop(self.streams))

    def warm_up(self) -> Load:
        """Returns a load with one short request per stream."""
        return Load(self.prompts().warm_up(self.streams), ClosedLoop(self.streams))
