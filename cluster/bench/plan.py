"""What the options of `neox-serve bench` come to: which of them go together, and the load that they make."""

from dataclasses import dataclass
from pathlib import Path

from cluster.bench.endpoints import Endpoint
from neox_serve.loadgen.arrivals import Arrivals, ClosedLoop, OpenLoop, Replay
from neox_serve.loadgen.load import Load
from neox_serve.loadgen.trace_files import MOONCAKE_BLOCK_TOKENS, TraceKind
from neox_serve.loadgen.traces import Recorded, Survey, recorded_in, survey
from neox_serve.loadgen.workloads import Synthetic, Workload

_STREAMS = 8
_REQUESTS = 100
_INPUT_TOKENS = 128
_OUTPUT_TOKENS = 64


class OptionError(Exception):
    """Options that make no load. option: the one to change."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, slots=True)
class Options:
    """As given on the command line; None where not. Raises OptionError where they contradict each other."""

    streams: int | None = None
    rate: float | None = None
    burstiness: float | None = None
    speed: float | None = None
    max_in_flight: int | None = None
    requests: int | None = None
    duration_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    trace: Path | None = None
    trace_divisor: int = 8
    max_model_len: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        lengths = self.input_tokens is not None or self.output_tokens is not None
        wrong = (
            (self.streams is not None and self.rate is not None, "--rate", "is for an open loop, --streams for a closed one"),
            (self.rate is not None and self.rate <= 0, "--rate", f"must be above 0, got {self.rate}"),
            (self.burstiness is not None and self.rate is None, "--burstiness", "needs --rate"),
            (self.speed is not None and not self.replays, "--speed", "needs --trace, without --rate or --streams"),
            (self.speed is not None and self.speed <= 0, "--speed", f"must be above 0, got {self.speed}"),
            (self.duration_s is not None and self.duration_s <= 0, "--duration", f"must be above 0, got {self.duration_s}"),
            (self.max_in_flight is not None and not self.is_open_loop, "--max-in-flight", "needs --rate, or a replayed --trace"),
            (self.trace is not None and lengths, "--input-tokens, --output-tokens", "cannot be given with --trace, which has its own"),
            ((self.requests or self.callers) < self.callers, "--requests", f"must be at least one for each of {self.callers} streams"),
            (MOONCAKE_BLOCK_TOKENS % self.trace_divisor > 0, "--trace-divisor", f"must divide {MOONCAKE_BLOCK_TOKENS}"),
        )
        for is_wrong, option, message in wrong:
            if is_wrong:
                raise OptionError(option, message)

    @property
    def replays(self) -> bool:
        """Whether a trace says when requests are sent."""
        return self.trace is not None and self.rate is None and self.streams is None

    @property
    def is_open_loop(self) -> bool:
        """Whether requests are sent without waiting for answers."""
        return self.rate is not None or self.replays

    @property
    def callers(self) -> int:
        """Of a closed loop; 0 of an open one."""
        return 0 if self.is_open_loop else self.streams or _STREAMS


@dataclass(frozen=True, slots=True)
class Plan:
    """A load. requests: how many at most, None where time alone ends it. notes: what was changed in a recording, in words."""

    load: Load
    requests: int | None
    notes: tuple[str, ...] = ()


def plan(options: Options, endpoint: Endpoint) -> Plan:
    """The load for a system. Raises OptionError, and TraceError for a file that is wrong."""
    if options.trace is None:
        workload = _synthetic(options, endpoint)
        return Plan(_load(options, workload), workload.count)
    recorded = _recorded(options, options.trace, endpoint)
    found = survey(recorded)
    if options.replays and not found.timed:
        raise OptionError("--trace", f"{options.trace} does not say when requests came: give --rate or --streams")
    return Plan(_load(options, recorded), found.requests, tuple(_changes(recorded, found)))


def _load(options: Options, workload: Workload) -> Load:
    return Load(workload, _arrivals(options), options.duration_s, options.max_in_flight, options.seed)


def _arrivals(options: Options) -> Arrivals:
    if options.replays:
        return Replay(options.speed or 1.0)
    if options.rate is not None:
        return OpenLoop(options.rate, 1.0 if options.burstiness is None else options.burstiness)
    return ClosedLoop(options.callers)


def _synthetic(options: Options, endpoint: Endpoint) -> Synthetic:
    input_tokens, output_tokens = options.input_tokens or _INPUT_TOKENS, options.output_tokens or _OUTPUT_TOKENS
    if endpoint.max_model_len is not None and input_tokens + output_tokens > endpoint.max_model_len:
        message = f"{input_tokens} + {output_tokens} tokens do not fit into the {endpoint.max_model_len} of {endpoint.model}"
        raise OptionError("--input-tokens, --output-tokens", message)
    count = options.requests or (max(_REQUESTS, options.callers) if options.duration_s is None else None)
    return Synthetic(
        f"{input_tokens} tokens in, {output_tokens} out", count, input_tokens, output_tokens, endpoint.vocabulary_size, seed=options.seed
    )


def _recorded(options: Options, trace: Path, endpoint: Endpoint) -> Recorded:
    max_model_len = options.max_model_len or endpoint.max_model_len
    if max_model_len is None:
        raise OptionError("--context-tokens", f"must be given: {endpoint.address} does not say what {endpoint.model} has")
    return recorded_in(
        trace,
        max_model_len=max_model_len,
        vocabulary_size=endpoint.vocabulary_size,
        count=options.requests,
        divisor=options.trace_divisor,
        seed=options.seed,
    )


def _changes(recorded: Recorded, found: Survey) -> list[str]:
    notes = []
    if recorded.kind is TraceKind.MOONCAKE and recorded.divisor > 1:
        notes.append(f"Lengths and prefix blocks of {recorded.name} are divided by {recorded.divisor}.")
    if found.clipped:
        notes.append(f"{found.clipped:,} of {found.requests:,} requests are clipped to a context of {recorded.max_model_len:,} tokens.")
    return notes
