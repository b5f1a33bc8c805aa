"""Turns the outputs of vLLM's engine steps into callbacks.

AsyncLLM passes every output of a step to its request's collector, and records statistics at the end of the step. A collector that calls
back immediately and a statistics logger that marks the end of the step deliver a step's outputs without a task per request.
"""

from collections.abc import Callable

from vllm.config import VllmConfig
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.metrics.loggers import PerEngineStatLoggerFactory, StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

OnOutput = Callable[[RequestOutput | PoolingRequestOutput | Exception], None]
OnStep = Callable[[SchedulerStats | None], None]


class DirectCollector(RequestOutputCollector):  # type: ignore[misc]
    """Passes each output of one vLLM request on immediately."""

    def __init__(self, request_id: str, on_output: OnOutput) -> None:
        super().__init__(RequestOutputKind.DELTA, request_id)
        self._on_output = on_output

    def put(self, output: RequestOutput | PoolingRequestOutput | Exception) -> None:
        """Called by vLLM for each output of a step, or once with an exception if the engine dies."""
        self._on_output(output)


class StepLogger(StatLoggerBase):  # type: ignore[misc]
    """A statistics logger that calls back at the end of every engine step, after all its outputs."""

    def __init__(self, _config: VllmConfig, _engine_index: int = 0, *, on_step: OnStep) -> None:
        self._on_step = on_step

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Called by vLLM at the end of a step."""
        self._on_step(scheduler_stats)

    def log_engine_initialized(self) -> None:
        """Called by vLLM; does nothing."""


class StepSignal:
    """Connects the logger, which vLLM creates while it starts, with the engine, which is created after that."""

    def __init__(self) -> None:
        self._listener: OnStep = lambda _stats: None

    def connect(self, listener: OnStep) -> None:
        """Sets the callback for the ends of steps."""
        self._listener = listener

    def logger_factory(self) -> PerEngineStatLoggerFactory:
        """Returns a stat logger factory for AsyncLLM."""
        return lambda config, index: StepLogger(config, index, on_step=self.end_step)

    def end_step(self, stats: SchedulerStats | None) -> None:
        """Calls the listener. Called when a step is over and all its outputs have been delivered."""
        self._listener(stats)
