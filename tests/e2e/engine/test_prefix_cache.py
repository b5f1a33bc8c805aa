"""vLLM's prefix cache: what it tells us of itself is what it has, under our names, and salts keep tenants apart."""

import asyncio
from collections.abc import Sequence
from random import Random

import pytest

from neox_serve.core.prefix_cache.block_hashes import prompt_blocks, root
from neox_serve.core.prefix_cache.block_ledger import BlockLedger
from neox_serve.core.types import Beam, Delta, EmbeddingRequest, GenerationRequest, Pool, Pooling, Stopping, TokenIds
from neox_serve.engine.protocol import Engine
from neox_serve.settings import restore
from neox_serve.settings.engines import ModelSettings
from tests.engines import BLOCK_SIZE, SMALL, start
from tests.fakes.link_cluster import until

pytestmark = pytest.mark.e2e

MODEL = ModelSettings().name
_rng = Random(5)


def fresh_prompt(blocks: int = 4) -> TokenIds:
    """A prompt that no other test sends: full blocks and one token more."""
    return tuple(_rng.randrange(10, 2000) for _ in range(blocks * BLOCK_SIZE + 1))


async def cached(engine: Engine, ids: TokenIds, salt: str | None = None, adapter: str | None = None, beam: Beam | None = None) -> int:
    """The prompt tokens that an engine found in its cache."""
    deltas: list[Delta] = []
    ended = asyncio.Event()

    def sink(news: Sequence[Delta]) -> None:
        deltas.extend(news)
        if news[-1].end:
            ended.set()

    request = GenerationRequest("r", ids, Stopping(2, ignore_eos=True), cache_salt=salt, adapter=adapter, beam=beam)
    await engine.generate(object(), request, sink)
    await asyncio.wait_for(ended.wait(), 60)
    assert deltas[-1].failure is None
    return next(delta.prompt.cached_tokens for delta in deltas if delta.prompt is not None)


def ledger_of(engine: Engine) -> BlockLedger:
    assert engine.block_ledger is not None
    assert engine.block_ledger.block_tokens == BLOCK_SIZE
    return engine.block_ledger


def named(ids: TokenIds, salt: str | None = None, adapter: str | None = None) -> set[int]:
    return set(prompt_blocks(root(MODEL, adapter, salt), ids, BLOCK_SIZE))


async def test_equal_salts_hit_in_full_and_different_ones_not_at_all(generation_engine: Engine) -> None:
    ids = fresh_prompt()
    found = [await cached(generation_engine, ids, salt) for salt in ("acme", "acme", "other", "other", None, None, "acme")]
    full = 4 * BLOCK_SIZE
    assert found == [0, full, 0, full, 0, full, full]


async def test_salt_keeps_beam_search_apart_too(generation_engine: Engine) -> None:
    ids = fresh_prompt()
    assert await cached(generation_engine, ids, "acme", beam=Beam(2)) == 0
    assert await cached(generation_engine, ids, "other", beam=Beam(2)) == 0
    assert await cached(generation_engine, ids, "acme", beam=Beam(2)) == 4 * BLOCK_SIZE


async def test_ledger_names_what_the_engine_has_as_gateways_do(generation_engine: Engine) -> None:
    ledger = ledger_of(generation_engine)
    for salt, adapter in ((None, None), ("acme", None), (None, "loud"), ("acme", "loud")):
        ids = fresh_prompt()
        assert not named(ids, salt, adapter) & set(ledger.blocks())
        await cached(generation_engine, ids, salt, adapter)
        await until(lambda ids=ids, salt=salt, adapter=adapter: named(ids, salt, adapter) <= set(ledger.blocks()), 5)  # type: ignore[misc]


async def test_full_cache_forgets_and_the_ledger_with_it(generation_engine: Engine) -> None:
    """Whatever the ledger has of a prompt is what the engine finds of it, whether it was pushed out or not."""
    ledger, prompts = ledger_of(generation_engine), [fresh_prompt(12) for _ in range(200)]
    for first in range(0, len(prompts), 8):
        await asyncio.gather(*(cached(generation_engine, ids) for ids in prompts[first : first + 8]))
    await asyncio.sleep(0.3)
    assert held(ledger, prompts[-1]) == 12
    assert held(ledger, prompts[0]) == 0
    partly = max((ids for ids in prompts if held(ledger, ids) < 12), key=lambda ids: held(ledger, ids))
    for ids in (partly, prompts[0], prompts[-1]):
        expected = held(ledger, ids) * BLOCK_SIZE
        assert await cached(generation_engine, ids) == expected
        await asyncio.sleep(0.3)


def held(ledger: BlockLedger, ids: TokenIds) -> int:
    """The prompt's first blocks that are there, up to the first that is not."""
    blocks = prompt_blocks(root(MODEL), ids, BLOCK_SIZE)
    return next((number for number, block in enumerate(blocks) if block not in ledger), len(blocks))


async def test_salts_keep_embeddings_apart() -> None:
    """Of pooling by the last token, which uses the prefix cache."""
    values = {"default_pooling": "last", "engine": SMALL}
    engine, ids = await start(Pool.EMBEDDING, restore({"embedding": values})), fresh_prompt()
    try:
        requests = [EmbeddingRequest("r", ids, Pooling.LAST, cache_salt=salt) for salt in ("acme", "acme", "other", "other")]
        found = [(await engine.embed(number, request)).cached_tokens for number, request in enumerate(requests)]
        assert found == [0, 4 * BLOCK_SIZE, 0, 4 * BLOCK_SIZE]
    finally:
        await engine.close()
