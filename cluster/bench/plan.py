"""Checks the options of `neox-serve bench` against each other and makes a load from them."""

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
    """Options that cannot be combined, or a value that is out of range."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option
        """The option to change."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command; None if not given. The constructor raises OptionError if they contradict each other."""

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
            (
                self.streams is not None and self.rate is not None,
                "--rate",
                "cannot be combined with --streams: one is for an open loop, the other for a closed one",
            ),
            (self.rate is not None and self.rate <= 0, "--rate", f"{self.rate} is invalid; it must be above 0"),
            (self.burstiness is not None and self.rate is None, "--burstiness", "needs --rate"),
            (self.speed is not None and not self.replays, "--speed", "needs --trace, without --rate or --streams"),
            (self.speed is not None and self.speed <= 0, "--speed", f"{self.speed} is invalid; it must be above 0"),
            (self.duration_s is not None and self.duration_s <= 0, "--duration", f"{self.duration_s} is invalid; it must be above 0"),
            (self.max_in_flight is not None and not self.is_open_loop, "--max-in-flight", "needs --rate, or a replayed --trace"),
            (
                self.trace is not None and lengths,
                "--input-tokens, --output-tokens",
                "cannot be combined with --trace, which has its own lengths",
            ),
            ((self.requests or self.callers) < self.callers, "--requests", f"must be at least {self.callers}, one per stream"),
            (MOONCAKE_BLOCK_TOKENS % self.trace_divisor > 0, "--trace-divisor", f"must divide {MOONCAKE_BLOCK_TOKENS}"),
        )
        for is_wrong, option, message in wrong:
            if is_wrong:
                raise OptionError(option, message)

    @property
    def replays(self) -> bool:
        """Whether requests are sent at the times of a trace."""
        return self.trace is not None and self.rate is None and self.streams is None

    @property
    def is_open_loop(self) -> bool:
        """Whether requests are sent without waiting for responses."""
        return self.rate is not None or self.replays

    @property
    def callers(self) -> int:
        """Number of callers of a closed loop; 0 for an open loop."""
        return 0 if self.is_open_loop else self.streams or _STREAMS


@dataclass(frozen=True, slots=True)
class Plan:
    """A load, and what to know about it."""

    load: Load
    requests: int | None
    """Maximum number of requests; None if only time ends the load."""
    notes: tuple[str, ...] = ()
    """What was changed in a recording."""


def plan(options: Options, endpoint: Endpoint) -> Plan:
    """The load for a system. Raises OptionError, and TraceError for an invalid trace."""
    if options.trace is None:
        workload = _synthetic(options, endpoint)
        return Plan(_load(options, workload), workload.count)
    recorded = _recorded(options, options.trace, endpoint)
    found = survey(recorded)
    if options.replays and not found.timed:
        raise OptionError("--trace", f"{options.trace} has no arrival times; add --rate or --streams")
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
        message = f"{input_tokens} + {output_tokens} tokens exceed the context length of {endpoint.model}, {endpoint.max_model_len}"
        raise OptionError("--input-tokens, --output-tokens", message)
    count = options.requests or (max(_REQUESTS, options.callers) if options.duration_s is None else None)
    return Synthetic(
        f"{input_tokens} tokens in, {output_tokens} out", count, input_tokens, output_tokens, endpoint.vocabulary_size, seed=options.seed
    )


def _recorded(options: Options, trace: Path, endpoint: Endpoint) -> Recorded:
    max_model_len = options.max_model_len or endpoint.max_model_len
    if max_model_len is None:
        raise OptionError(
            "--max-model-len", f"must be given, since {endpoint.address} does not report the context length of {endpoint.model}"
        )
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
        notes.append(
            f"{found.clipped:,} of {found.requests:,} requests are clipped to a context length of {recorded.max_model_len:,} tokens."
        )
    return notes
