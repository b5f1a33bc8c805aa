"""Starts the engine that the settings ask for."""

from contextlib import nullcontext
from pathlib import Path

from neox_serve.core.types import Pool
from neox_serve.engine import arguments
from neox_serve.engine.detokenizer import TokenTable
from neox_serve.engine.environment import engine_environment
from neox_serve.engine.fake.answers import Vocabulary
from neox_serve.engine.fake.cache import FakeCache
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.engine.hardware import this_machine
from neox_serve.engine.pools import engine_settings, executor_backend, on_gpu, replica_settings
from neox_serve.engine.protocol import Engine
from neox_serve.engine.vllm.processes import forks
from neox_serve.model import model_files
from neox_serve.model.adapter_registry import AdapterRegistry, KnownAdapters
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import Settings, SettingsError
from neox_serve.settings.engines import EngineSettings

FAKE_BLOCK_TOKENS = 32
FAKE_CACHE_TOKENS = 262_144

__all__ = ["engine_environment", "fake_engine", "read_token_table", "start_engine"]


async def start_engine(pool: Pool, settings: Settings, *, offline: bool = False) -> Engine:
    """A running engine for a pool. The process' environment must hold what `engine_environment` gave.

    offline: for requests that nobody reads along; with one worker on CPUs the engine then steps on the event loop.
    Everything that can be checked is checked before a weight is read. Raises SettingsError; RuntimeError where vLLM fails to start.
    """
    engine = engine_settings(pool, settings)
    folder = model_files.locate_tokenizer(settings.model.source, settings.model.revision)
    facts = model_files.read_facts(folder)
    table = read_token_table(folder)
    if engine.kind == "fake":
        return fake_engine(settings, engine, facts, table)
    machine = this_machine()
    arguments.check(pool, settings, facts, machine)
    in_loop = offline and not on_gpu(pool, settings) and executor_backend(engine, replica_settings(pool, settings)) == "uni"
    with nullcontext() if on_gpu(pool, settings) or in_loop else forks.importing_ahead():
        from neox_serve.engine.vllm.start import start_vllm_engine

    return await start_vllm_engine(pool, settings, facts, table, machine, in_loop=in_loop, offline=offline)


def read_token_table(folder: Path) -> TokenTable:
    """The tokens of the tokenizer in a folder. Raises SettingsError where it is not a byte-level one."""
    path = folder / "tokenizer.json"
    try:
        return TokenTable.from_tokenizer_json(model_files.read_json(path, setting="model.source"))
    except (KeyError, ValueError) as error:
        raise SettingsError(f"model.source: {path}: {error}") from error


def fake_engine(settings: Settings, engine: EngineSettings, facts: ModelFacts, table: TokenTable) -> FakeEngine:
    """The fake engine with the model's tokens, so that its text and ids agree with the tokenizer."""
    timing = engine.fake
    return FakeEngine(
        FakeTiming(timing.ttft_s, timing.itl_s, timing.itl_per_request_s),
        vocabulary=Vocabulary(
            size=len(table.contents),
            text_bytes=table.text_bytes,
            display=table.display,
            eos_token_id=facts.eos_token_id,
            dimensions=facts.hidden_size,
        ),
        adapters=KnownAdapters(frozenset(adapter.name for adapter in settings.model.adapters), AdapterRegistry(settings.model.registry)),
        max_num_seqs=engine.max_num_seqs,
        cache=_fake_cache(settings.model.name, engine),
        timestamp_text=timing.timestamp_text,
    )


def _fake_cache(model: str, engine: EngineSettings) -> FakeCache | None:
    if not (engine.enable_prefix_caching and engine.report_prefix_cache):
        return None
    block_tokens = engine.block_size or FAKE_BLOCK_TOKENS
    return FakeCache(model, block_tokens=block_tokens, capacity_blocks=FAKE_CACHE_TOKENS // block_tokens)
