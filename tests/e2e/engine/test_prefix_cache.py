"""vLLM's prefix cache: its ledger equals its content, and salts separate tenants."""

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
    """Returns a prompt that no other test sends: full blocks and one more token."""
    return tuple(_rng.randrange(10, 2000) for _ in range(blocks * BLOCK_SIZE + 1))


async def cached(engine: Engine, ids: TokenIds, salt: str | None = None, adapter: str | None = None, beam: Beam | None = None) -> int:
    """Returns the number of prompt tokens that an engine found in its cache."""
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


async def test_requests_with_equal_salts_share_the_cache_and_others_do_not(generation_engine: Engine) -> None:
    ids = fresh_prompt()
    found = [await cached(generation_engine, ids, salt) for salt in ("acme", "acme", "other", "other", None, None, "acme")]
    full = 4 * BLOCK_SIZE
    assert found == [0, full, 0, full, 0, full, full]


async def test_salt_separates_beam_searches_too(generation_engine: Engine) -> None:
    ids = fresh_prompt()
    assert await cached(generation_engine, ids, "acme", beam=Beam(2)) == 0
    assert await cached(generation_engine, ids, "other", beam=Beam(2)) == 0
    assert await cached(generation_engine, ids, "acme", beam=Beam(2)) == 4 * BLOCK_SIZE


async def test_ledger_uses_the_same_block_hashes_as_gateways(generation_engine: Engine) -> None:
    ledger = ledger_of(generation_engine)
    for salt, adapter in ((None, None), ("acme", None), (None, "loud"), ("acme", "loud")):
        ids = fresh_prompt()
        assert not named(ids, salt, adapter) & set(ledger.blocks())
        await cached(generation_engine, ids, salt, adapter)
        await until(lambda ids=ids, salt=salt, adapter=adapter: named(ids, salt, adapter) <= set(ledger.blocks()), 5)  # type: ignore[misc]


async def test_ledger_follows_evictions_of_a_full_cache(generation_engine: Engine) -> None:
    """The engine finds exactly those blocks of a prompt that the ledger has, whether some were evicted or not."""
    ledger, prompts = ledger_of(generation_engine), [fresh_prompt(12) for _ in range(200)]
    for first in range(0, len(prompts), 8):
        await asyncio.gather(*(cached(generation_engine, ids) for ids in prompts[first : first + 8]))
    await asyncio.sleep(0.3)
    assert leading_blocks(ledger, prompts[-1]) == 12
    assert leading_blocks(ledger, prompts[0]) == 0
    partly = max((ids for ids in prompts if leading_blocks(ledger, ids) < 12), key=lambda ids: leading_blocks(ledger, ids))
    for ids in (partly, prompts[0], prompts[-1]):
        expected = leading_blocks(ledger, ids) * BLOCK_SIZE
        assert await cached(generation_engine, ids) == expected
        await asyncio.sleep(0.3)


def leading_blocks(ledger: BlockLedger, ids: TokenIds) -> int:
    """Returns the number of the prompt's leading blocks that the ledger has."""
    blocks = prompt_blocks(root(MODEL), ids, BLOCK_SIZE)
    return next((number for number, block in enumerate(blocks) if block not in ledger), len(blocks))


async def test_salts_separate_embeddings() -> None:
    """The pooling is LAST, which uses the prefix cache."""
    values = {"default_pooling": "last", "engine": SMALL}
    engine, ids = await start(Pool.EMBEDDING, restore({"embedding": values})), fresh_prompt()
    try:
        requests = [EmbeddingRequest("r", ids, Pooling.LAST, cache_salt=salt) for salt in ("acme", "acme", "other", "other")]
        found = [(await engine.embed(number, request)).cached_tokens for number, request in enumerate(requests)]
        assert found == [0, 4 * BLOCK_SIZE, 0, 4 * BLOCK_SIZE]
    finally:
        await engine.close()
