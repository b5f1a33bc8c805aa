"""The router's predictions of a real engine's prefix cache equal what the engine reports, over real links and beside a fake replica."""

from collections.abc import AsyncIterator
from random import Random

import pytest

from neox_serve.core.prefix_cache.block_hashes import prompt_blocks, root
from neox_serve.core.types import GenerationRequest, Stopping, TokenIds
from neox_serve.engine.fake.cache import FakeCache
from neox_serve.engine.fake.engine import FakeEngine
from neox_serve.engine.protocol import Engine
from neox_serve.gateway.dispatch.link_dispatcher import LinkDispatcher
from neox_serve.router.server import RouterServer
from neox_serve.settings.engines import ModelSettings
from tests.engines import BLOCK_SIZE
from tests.fakes.link_cluster import LinkCluster, read_all, until

pytestmark = pytest.mark.e2e

MODEL = ModelSettings().name
TURNS = 5
CONVERSATIONS = 12


async def generate(dispatcher: LinkDispatcher, ids: TokenIds, salt: str | None) -> tuple[str, int | None, int, TokenIds]:
    """Returns the replica that ran the request, its cached tokens as predicted and as reported, and the generated tokens."""
    request = GenerationRequest("r", ids, Stopping(8, ignore_eos=True), cache_salt=salt)
    stream = await dispatcher.open_generation(MODEL, request)
    deltas = await read_all(stream)
    reported = next(delta.prompt.cached_tokens for delta in deltas if delta.prompt is not None)
    answer = tuple(token for delta in deltas for sequence in delta.sequences for token in sequence.token_ids)
    return stream.replica_id, stream.predicted_cached_tokens, reported, answer


async def indexed(router: RouterServer, replica_id: str, ids: TokenIds, salt: str) -> None:
    """Waits until the router knows that a replica has cached all blocks of a prompt."""
    names = prompt_blocks(root(MODEL, None, salt), ids, BLOCK_SIZE)
    await until(lambda: router.state._index.look_up(names).blocks(replica_id) == len(names))


@pytest.fixture
async def cluster(generation_engine: Engine) -> AsyncIterator[tuple[RouterServer, LinkDispatcher, str]]:
    """A router, a dispatcher, and the id of the replica with the real engine."""
    async with LinkCluster() as links:
        router = await links.router()
        fake = FakeEngine(cache=FakeCache(MODEL, block_tokens=BLOCK_SIZE, capacity_blocks=10_000))
        real = await links.replica(generation_engine, model=MODEL)
        await links.replica(fake, model=MODEL)
        yield router, await links.dispatcher(replicas=2), real.replica_id
        await fake.close()


async def test_conversations_stay_on_their_replica_and_cache_hits_are_as_predicted(
    cluster: tuple[RouterServer, LinkDispatcher, str],
) -> None:
    router, dispatcher, real = cluster
    rng = Random(11)
    conversations = [tuple(rng.randrange(10, 2000) for _ in range(2 * BLOCK_SIZE)) for _ in range(CONVERSATIONS)]
    seen: list[set[str]] = [set() for _ in conversations]
    hit_fractions = []
    for turn in range(TURNS):
        for number, ids in enumerate(conversations):
            salt = f"tenant-{number % 3}"
            replica_id, predicted, reported, answer = await generate(dispatcher, ids, salt)
            await indexed(router, replica_id, ids, salt)
            assert predicted == reported
            seen[number].add(replica_id)
            if replica_id == real and turn:
                hit_fractions.append(reported / len(ids))
            conversations[number] = ids + answer + tuple(rng.randrange(10, 2000) for _ in range(BLOCK_SIZE))
    assert all(len(replicas) == 1 for replicas in seen)
    assert len(hit_fractions) >= TURNS - 1
    assert min(hit_fractions) > 0.45


async def test_equal_prompts_of_two_tenants_share_no_cached_block(cluster: tuple[RouterServer, LinkDispatcher, str]) -> None:
    router, dispatcher, _ = cluster
    ids = tuple(Random(13).randrange(10, 2000) for _ in range(4 * BLOCK_SIZE + 1))
    for salt, expected in (("acme", 0), ("acme", 4 * BLOCK_SIZE), ("other", 0), ("other", 4 * BLOCK_SIZE)):
        replica_id, predicted, reported, _ = await generate(dispatcher, ids, salt)
        assert (predicted, reported) == (expected, expected)
        await indexed(router, replica_id, ids, salt)
