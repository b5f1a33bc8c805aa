"""Starts the engine that the settings select."""

from contextlib import nullcontext
from pathlib import Path

from neox_serve.engine import checks
from neox_serve.engine.detokenizer import TokenTable
from neox_serve.engine.environment import engine_environment
from neox_serve.engine.fake.cache import FakeCache
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.engine.fake.outputs import Vocabulary
from neox_serve.engine.hardware import this_machine
from neox_serve.engine.pools import executor_backend
from neox_serve.engine.protocol import Engine
from neox_serve.engine.vllm.processes import forks
from neox_serve.model import model_files
from neox_serve.model.adapter_registry import AdapterRegistry, KnownAdapters
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import SettingsError
from neox_serve.settings.slices import PoolEngineSettings

FAKE_BLOCK_TOKENS = 32
"""Block size of the fake engine's prefix cache if `block_size` is not set."""
FAKE_CACHE_TOKENS = 262_144
"""Capacity of the fake engine's prefix cache."""

__all__ = ["engine_environment", "fake_engine", "read_token_table", "start_engine"]


async def start_engine(settings: PoolEngineSettings, *, offline: bool = False) -> Engine:
    """Returns a running engine. The process's environment must contain what `engine_environment` returned.

    Set `offline` if no one reads the output while it is generated; with a single CPU worker the engine then steps on the event loop.
    Everything that can be checked is checked before any weights are read. Raises SettingsError, and RuntimeError if vLLM fails to start.
    """
    folder = model_files.locate_tokenizer(settings.model.source, settings.model.revision)
    facts = model_files.read_facts(folder)
    table = read_token_table(folder)
    if settings.engine.kind == "fake":
        return fake_engine(settings, facts, table)
    machine = this_machine()
    checks.check(settings, facts, machine)
    in_loop = offline and not settings.on_gpu and executor_backend(settings.engine, settings.replicas) == "uni"
    with nullcontext() if settings.on_gpu or in_loop else forks.importing_ahead():
        from neox_serve.engine.vllm.start import start_vllm_engine

    return await start_vllm_engine(settings, facts, table, machine, in_loop=in_loop, offline=offline)


def read_token_table(folder: Path) -> TokenTable:
    """Returns the tokens of the tokenizer in a folder. Raises SettingsError if it is not a byte-level tokenizer."""
    path = folder / "tokenizer.json"
    try:
        return TokenTable.from_tokenizer_json(model_files.read_json(path, setting="model.source"))
    except (KeyError, ValueError) as error:
        raise SettingsError(f"model.source: {path}: {error}") from error


def fake_engine(settings: PoolEngineSettings, facts: ModelFacts, table: TokenTable) -> FakeEngine:
    """Returns a fake engine with the model's tokens, so that its text and token ids agree with the tokenizer."""
    engine, timing = settings.engine, settings.engine.fake
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
        cache=_fake_cache(settings),
        timestamp_text=timing.timestamp_text,
    )


def _fake_cache(settings: PoolEngineSettings) -> FakeCache | None:
    engine = settings.engine
    if not (engine.enable_prefix_caching and engine.report_prefix_cache):
        return None
    block_tokens = engine.block_size or FAKE_BLOCK_TOKENS
    return FakeCache(settings.model.name, block_tokens=block_tokens, capacity_blocks=FAKE_CACHE_TOKENS // block_tokens)
