"""LoRA adapters on real engines: they are loaded on demand and unloaded for others, and broken ones affect only their own requests."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import GenerationRequest, Pool, Sampling, Stopping
from neox_serve.engine.protocol import Engine
from tests.engines import RANK, settings_of, start, write_adapter
from tests.fakes.recording_sink import ask

pytestmark = pytest.mark.e2e
REQUEST = GenerationRequest("r", tuple(range(40, 60)), Stopping(8, ignore_eos=True), Sampling(temperature=0.0))
REMOTE = "memory://adapters/remote"


def adapters_in(folder: Path) -> list[dict[str, Any]]:
    """Returns settings of four valid adapters, of which one is pinned and one is remote, and four broken ones."""
    names = ("pinned", "first", "second", "truncated", "other-base")
    paths = {name: write_adapter(folder / name, scale=0.05 * (number + 1)) for number, name in enumerate(names)}
    wide = write_adapter(folder / "wide", scale=0.1, rank=2 * RANK)
    weights = paths["truncated"] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (paths["other-base"] / "adapter_config.json").write_text('{"r": "eight"}')
    remote = fsspec.filesystem("memory")
    source = write_adapter(folder / "remote", scale=0.3)
    remote.put(f"{source}/", "/adapters/remote/", recursive=True)
    shutil.rmtree(source)
    found = {name: str(path) for name, path in paths.items()} | {"wide": str(wide), "missing": str(folder / "none"), "remote": REMOTE}
    return [{"name": name, "path": path, "pinned": name == "pinned"} for name, path in found.items()]


@pytest.fixture(scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    folder = tmp_path_factory.mktemp("adapters")
    settings = settings_of(Pool.GENERATION, {"max_lora_rank": RANK, "max_loaded_loras": 2}, adapters=adapters_in(folder))
    started = await start(Pool.GENERATION, settings.model_copy(update={"state_folder": folder / "state"}))
    yield started
    await started.close()


async def tokens(engine: Engine, adapter: str | None) -> tuple[int, ...]:
    return tuple((await ask(engine, replace(REQUEST, adapter=adapter), f"{adapter}-key")).token_ids())


async def test_adapters_are_loaded_when_named_and_the_min_recently_used_leaves(engine: Engine) -> None:
    assert engine.stats().adapters == {"pinned"}
    base, first = await tokens(engine, None), await tokens(engine, "first")
    assert first != base
    assert engine.stats().adapters == {"pinned", "first"}
    second = await tokens(engine, "second")
    assert second not in (base, first)
    assert engine.stats().adapters == {"pinned", "second"}
    assert await tokens(engine, "first") == first
    assert await tokens(engine, None) == base


async def test_remote_adapter_is_fetched_once_and_served(engine: Engine) -> None:
    remote = await tokens(engine, "remote")
    assert remote != await tokens(engine, None)
    fsspec.filesystem("memory").rm("/adapters/remote", recursive=True)
    await tokens(engine, "first")
    assert await tokens(engine, "remote") == remote


@pytest.mark.parametrize("broken", ["truncated", "other-base", "wide", "missing"])
async def test_broken_adapter_fails_only_requests_that_name_it(engine: Engine, broken: str) -> None:
    base = await tokens(engine, None)
    others = asyncio.gather(*(ask(engine, replace(REQUEST, adapter=None), f"other-{n}-{broken}") for n in range(3)))
    for _ in range(2):
        with pytest.raises(ServeError) as caught:
            await tokens(engine, broken)
        assert (caught.value.reason, caught.value.metadata["adapter"]) == (Reason.BROKEN_ADAPTER, broken)
        assert "/" not in caught.value.message, "the message must not contain paths"
    assert all(tuple(one.token_ids()) == base for one in await others)
    await engine.check_health()


async def test_adapter_without_a_free_slot_is_rejected_with_a_retry_delay(engine: Engine) -> None:
    running = asyncio.create_task(ask(engine, replace(REQUEST, stopping=Stopping(400, ignore_eos=True), adapter="first"), "long"))
    while "first" not in engine.stats().adapters or not engine.stats().running_requests:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    with pytest.raises(ServeError) as caught:
        await tokens(engine, "second")
    assert caught.value.reason is Reason.OVERLOADED
    assert caught.value.retry_after_s is not None
    await running
    await tokens(engine, "second")
