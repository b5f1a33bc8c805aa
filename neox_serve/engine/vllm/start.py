"""Starts a vLLM engine."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack

from vllm.config import VllmConfig
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.llm_engine import LLMEngine

from neox_serve.core.errors import ServeError
from neox_serve.core.types import Delta, EmbeddingRequest, GenerationRequest, Pooling, Stopping
from neox_serve.engine.detokenizer import TokenTable
from neox_serve.engine.hardware import Machine
from neox_serve.engine.vllm import arguments
from neox_serve.engine.vllm.adapters import AdapterRules, VllmAdapters
from neox_serve.engine.vllm.cache_events import CacheEventReader, EventSockets
from neox_serve.engine.vllm.engine import VllmEngine
from neox_serve.engine.vllm.ports import LoopPort, Port, ProcessPort
from neox_serve.engine.vllm.steps import StepSignal
from neox_serve.model import model_files
from neox_serve.model.facts import ModelFacts
from neox_serve.settings.slices import PoolEngineSettings

_WARM_UP = "warm-up"
_WARM_UP_TIMEOUT_S = 300.0


async def start_vllm_engine(
    settings: PoolEngineSettings,
    facts: ModelFacts,
    table: TokenTable,
    machine: Machine,
    *,
    in_loop: bool = False,
    offline: bool = False,
) -> VllmEngine:
    """Returns a running engine. Raises SettingsError before anything is loaded, and RuntimeError if vLLM fails to start.

    `offline` says that no one reads the output while it is generated. With `in_loop` the engine core steps on the event loop and starts on
    its thread, to which OpenMP binds cores. Otherwise vLLM blocks while it waits for its processes to start, so it starts on another
    thread; it uses the caller's event loop in both cases.
    """
    folder = await asyncio.to_thread(model_files.locate, settings.model.source, settings.model.revision)
    engine_arguments = arguments.build_engine_arguments(settings, folder, machine)
    reports_cache = engine_arguments.enable_prefix_caching and settings.engine.report_prefix_cache and not offline
    sockets = EventSockets() if reports_cache else None
    engine_arguments.kv_events_config = sockets.config() if sockets else None
    steps = StepSignal()
    with ExitStack() as undo:
        if sockets:
            undo.callback(sockets.remove)
        config = arguments.build_engine_config(settings.pool, engine_arguments, offline=offline)
        if in_loop:
            port, supported_tasks = _in_loop(config, steps)
        else:
            port, supported_tasks = await _process(config, steps, disable_log_stats=engine_arguments.disable_log_stats)
        undo.pop_all()  # from here on closing the engine removes the sockets
    block_tokens = config.cache_config.block_size
    adapters = _adapters(port, settings, facts)
    engine = VllmEngine(
        port,
        steps,
        table=table,
        adapters=adapters,
        native_pooling=settings.output.default_pooling if settings.output else Pooling.MEAN,
        supported_tasks=supported_tasks,
        eos_token_id=facts.eos_token_id,
        cache=CacheEventReader(sockets, block_tokens=block_tokens, model=settings.model.name) if sockets else None,
    )
    try:
        await asyncio.wait_for(_warm_up(engine, settings), _WARM_UP_TIMEOUT_S)
        await adapters.load_pinned()
    except BaseException:
        await engine.close()
        raise
    return engine


async def _process(config: VllmConfig, steps: StepSignal, *, disable_log_stats: bool) -> tuple[Port, tuple[str, ...]]:
    loggers = [steps.logger_factory()]
    llm = await asyncio.to_thread(AsyncLLM.from_vllm_config, config, stat_loggers=loggers, disable_log_stats=disable_log_stats)
    supported_tasks = await llm.get_supported_tasks()
    llm._run_output_handler()
    return ProcessPort(llm), supported_tasks


def _in_loop(config: VllmConfig, steps: StepSignal) -> tuple[Port, tuple[str, ...]]:
    llm = LLMEngine.from_vllm_config(config, disable_log_stats=True)
    return LoopPort(llm, steps), llm.get_supported_tasks()


def _adapters(port: Port, settings: PoolEngineSettings, facts: ModelFacts) -> VllmAdapters:
    """Embedding engines have no adapters."""
    model = settings.model if settings.output is None else settings.model.model_copy(update={"adapters": (), "registry": None})
    max_loaded = arguments.max_loaded_adapters(settings)
    return VllmAdapters(port, model, AdapterRules(facts, settings.engine.max_lora_rank, max_loaded, settings.state_folder / "adapters"))


async def _warm_up(engine: VllmEngine, settings: PoolEngineSettings) -> None:
    """Runs one request, so that the first client does not wait for lazy set-up, and so that a broken engine does not count as started."""
    if settings.output is not None:
        await engine.embed(_WARM_UP, EmbeddingRequest(_WARM_UP, (0, 0), settings.output.default_pooling))
        return
    ended: asyncio.Future[ServeError | None] = asyncio.get_running_loop().create_future()

    def sink(deltas: Sequence[Delta]) -> None:
        if deltas[-1].end:
            ended.set_result(deltas[-1].failure)

    await engine.generate(_WARM_UP, GenerationRequest(_WARM_UP, (0, 0), Stopping(max_tokens=2, ignore_eos=True), logprobs=1), sink)
    if failure := await ended:
        raise failure
