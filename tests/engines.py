"""Engines for tests. Real engines are started once per session and shared; a test must not leave requests running in them."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from neox_serve.core.types import Pool
from neox_serve.engine.detokenizer import TokenTable
from neox_serve.engine.factory import engine_environment, read_token_table, start_engine
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming
from neox_serve.engine.fake.outputs import Vocabulary
from neox_serve.engine.protocol import Engine
from neox_serve.model import model_files
from neox_serve.settings import Settings, restore
from neox_serve.settings.slices import PoolEngineSettings

MAX_NUM_SEQS = 8
BLOCK_SIZE = 32
RANK = 8
SHARED_MEMORY = Path("/dev/shm")
SMALL = {"dtype": "float32", "max_num_seqs": MAX_NUM_SEQS, "kv_cache_gib": 0.1, "block_size": BLOCK_SIZE}
"""Engine settings that start in seconds. They use float32 on every CPU, so that tokens can be compared."""


@dataclass(frozen=True)
class Subject:
    """An engine under test, and what a test must know about it."""

    name: str
    engine: Engine
    table: TokenTable
    eos_token_id: int = 0


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes that are started in the block."""
    with mock.patch.dict(os.environ, values):
        yield


async def start(pool: Pool, settings: Settings) -> Engine:
    """Returns a started engine of a pool, in the environment that it needs."""
    engine = PoolEngineSettings.from_settings(settings, pool)
    with environment(engine_environment(engine)):
        return await start_engine(engine)


def descendants() -> set[psutil.Process]:
    """Returns the descendants of this process, except those of multiprocessing itself, which live as long as this process."""
    found = psutil.Process().children(recursive=True)
    return {process for process in found if not any(name in " ".join(process.cmdline()) for name in ("resource_tracker", "forkserver"))}


def shared_memory(processes: set[psutil.Process]) -> set[Path]:
    """Returns the named shared memory that the given processes use."""
    mapped = {Path(mapping.path) for process in processes for mapping in process.memory_maps()}
    return {path for path in mapped if path.parent == SHARED_MEMORY and path.exists()}


@dataclass(frozen=True)
class Running:
    """A started engine, its processes and their shared memory."""

    engine: Engine
    processes: set[psutil.Process]
    segments: set[Path]

    @classmethod
    async def start(cls, pool: Pool, settings: Settings) -> "Running":
        """Starts an engine and records its processes."""
        before = descendants()
        started = await start(pool, settings)
        processes = descendants() - before
        return cls(started, processes, shared_memory(processes))

    def left(self) -> tuple[list[psutil.Process], list[Path]]:
        """Returns the processes that still run and the shared memory that still exists."""
        return [process for process in self.processes if process.is_running()], [path for path in self.segments if path.exists()]


def settings_of(pool: Pool, engine: dict[str, Any], **model: Any) -> Settings:
    """Returns settings with a small real engine for a pool."""
    return restore({"model": model, pool.value: {"engine": SMALL | engine}})


def write_adapter(folder: Path, *, scale: float, rank: int = RANK) -> Path:
    """Writes a LoRA adapter for the built-in model's attention: random values times `scale`."""
    facts = model_files.read_facts(model_files.locate("builtin", None))
    rng = np.random.default_rng(7)
    tensors = {}
    for layer in range(facts.layers):
        name = f"base_model.model.gpt_neox.layers.{layer}.attention.query_key_value"
        tensors[f"{name}.lora_A.weight"] = rng.standard_normal((rank, facts.hidden_size)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = scale * rng.standard_normal((3 * facts.hidden_size, rank)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["query_key_value"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def builtin_table() -> TokenTable:
    return read_token_table(model_files.locate("builtin", None))


@pytest.fixture(scope="session")
async def generation_engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """vLLM on the built-in model, with the adapters "zero" (no effect) and "loud" (a strong effect)."""
    folder = tmp_path_factory.mktemp("adapters")
    adapters = [{"name": name, "path": str(write_adapter(folder / name, scale=scale))} for name, scale in (("zero", 0.0), ("loud", 0.1))]
    settings = settings_of(Pool.GENERATION, {"max_lora_rank": RANK}, adapters=adapters)
    running = await Running.start(Pool.GENERATION, settings)
    yield running.engine
    await running.engine.close()
    assert running.left() == ([], []), "a closed engine left processes or shared memory"


@pytest.fixture(scope="session")
async def embedding_engine() -> AsyncIterator[Engine]:
    """vLLM's embedding engine on the built-in model, with default pooling MEAN. Its worker runs in the engine core's process."""
    running = await Running.start(Pool.EMBEDDING, settings_of(Pool.EMBEDDING, {"executor_backend": "uni"}))
    yield running.engine
    await running.engine.close()
    assert running.left() == ([], []), "a closed engine left processes or shared memory"


@pytest.fixture(scope="session")
def fake_vocabulary() -> Vocabulary:
    return Vocabulary()


@pytest.fixture
async def fake_engine(fake_vocabulary: Vocabulary) -> AsyncIterator[FakeEngine]:
    """The fake engine with short delays in real time."""
    timing = FakeTiming(ttft_s=0.005, itl_s=0.002)
    engine = FakeEngine(timing, vocabulary=fake_vocabulary, adapters=frozenset({"zero", "loud"}), max_num_seqs=MAX_NUM_SEQS)
    yield engine
    await engine.close()


ENGINES = [pytest.param("fake"), pytest.param("vllm", marks=pytest.mark.e2e)]


def _fake_table(vocabulary: Vocabulary) -> TokenTable:
    return TokenTable(tuple(vocabulary.text_bytes(token_id) for token_id in range(vocabulary.size)), frozenset())


@pytest.fixture(params=ENGINES)
def generator(request: pytest.FixtureRequest, builtin_table: TokenTable, fake_vocabulary: Vocabulary) -> Subject:
    """Each of the generation engines."""
    if request.param == "fake":
        return Subject("fake", request.getfixturevalue("fake_engine"), _fake_table(fake_vocabulary))
    return Subject("vllm", request.getfixturevalue("generation_engine"), builtin_table)


@pytest.fixture(params=ENGINES)
def embedder(request: pytest.FixtureRequest, builtin_table: TokenTable, fake_vocabulary: Vocabulary) -> Subject:
    """Each of the embedding engines."""
    if request.param == "fake":
        return Subject("fake", request.getfixturevalue("fake_engine"), _fake_table(fake_vocabulary))
    return Subject("vllm", request.getfixturevalue("embedding_engine"), builtin_table)
