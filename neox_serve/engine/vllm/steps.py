"""What vLLM does between engine steps, turned into calls of ours.

AsyncLLM hands every output of a step to its request's collector, and at the end of the step it records statistics. So a collector that
passes outputs on at once, and a statistics logger that says when the step is over, give a step's outputs without a task a request.
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
    """Passes each output of one vLLM request on as it comes."""

    def __init__(self, request_id: str, on_output: OnOutput) -> None:
        super().__init__(RequestOutputKind.DELTA, request_id)
        self._on_output = on_output

    def put(self, output: RequestOutput | PoolingRequestOutput | Exception) -> None:
        """Called within a step, or once with an exception when the engine dies."""
        self._on_output(output)


class StepLogger(StatLoggerBase):  # type: ignore[misc]
    """Calls back at the end of every engine step, after all its outputs."""

    def __init__(self, _config: VllmConfig, _engine_index: int = 0, *, on_step: OnStep) -> None:
        self._on_step = on_step

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """The step is over."""
        self._on_step(scheduler_stats)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


class StepSignal:
    """Connects the logger, which vLLM makes while it starts, with the engine, which exists only after that."""

    def __init__(self) -> None:
        self._listener: OnStep = lambda _stats: None

    def connect(self, listener: OnStep) -> None:
        """Where steps are told from now on."""
        self._listener = listener

    def logger_factory(self) -> PerEngineStatLoggerFactory:
        """What AsyncLLM takes as a stat logger."""
        return lambda config, index: StepLogger(config, index, on_step=self.end_step)

    def end_step(self, stats: SchedulerStats | None) -> None:
        """A step is over, and all its outputs have been told."""
        self._listener(stats)
