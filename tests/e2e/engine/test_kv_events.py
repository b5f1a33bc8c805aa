"""Receiving KV events from vLLM's publisher: late, after a gap, and if missed events are no longer available."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVEventBatch, ZmqEventPublisher

from neox_serve.core.prefix_cache.block_hashes import prompt_blocks, root
from neox_serve.engine.vllm.cache_events import CacheEventReader, EventSockets
from tests.fakes.link_cluster import until

pytestmark = pytest.mark.e2e

SIZE = 4
MODEL = "m"


def ids(number: int) -> list[int]:
    return list(range(100 * number, 100 * number + SIZE))


def name(number: int) -> int:
    return prompt_blocks(root(MODEL), ids(number), SIZE)[0]


@dataclass(frozen=True)
class Core:
    """The publisher of an engine core."""

    sockets: EventSockets
    publisher: ZmqEventPublisher

    def store(self, *numbers: int) -> None:
        """Publishes a step that stores prompts of one block each."""
        self.publish(*(BlockStored([bytes([number])], None, ids(number), SIZE, None, "GPU", None) for number in numbers))

    def publish(self, *events: BlockStored | BlockRemoved) -> None:
        """Publishes the batch of one step."""
        self.publisher.publish(KVEventBatch(ts=0.0, events=list(events)))


@asynccontextmanager
async def core(buffer_steps: int = 100) -> AsyncIterator[Core]:
    sockets = EventSockets()
    config = sockets.config()
    publisher = ZmqEventPublisher(0, config.endpoint, config.replay_endpoint, buffer_steps=buffer_steps)
    yield Core(sockets, publisher)
    await asyncio.to_thread(publisher.shutdown)


@asynccontextmanager
async def reader(core: Core) -> AsyncIterator[CacheEventReader]:
    events = CacheEventReader(core.sockets, block_tokens=SIZE, model=MODEL)
    events.start()
    yield events
    await events.close()


def holds(reader: CacheEventReader, *numbers: int) -> Callable[[], bool]:
    expected = {name(number) for number in numbers}
    return lambda: set(reader.ledger.blocks()) == expected


async def test_late_reader_gets_earlier_events() -> None:
    async with core() as engine:
        engine.store(1)
        engine.publish(BlockRemoved([bytes([1])], "GPU"))
        engine.store(2, 3)
        await asyncio.sleep(0.2)
        async with reader(engine) as events:
            await until(holds(events, 2, 3))
            engine.store(4)
            await until(holds(events, 2, 3, 4))


async def test_gap_is_filled_by_a_replay() -> None:
    async with core() as engine, reader(engine) as events:
        engine.store(1)
        await until(holds(events, 1))
        next(engine.publisher._seq_gen)  # simulates a batch that was lost and that the core no longer has
        engine.store(2)
        await until(holds(events, 2))
        events._next -= 1  # simulates that the last batch did not arrive
        events._names.forget()
        engine.store(3)
        await until(holds(events, 2, 3))


async def test_missed_events_that_cannot_be_replayed_clear_the_ledger() -> None:
    async with core(buffer_steps=2) as engine:
        for number in range(1, 6):
            engine.store(number)
        await asyncio.sleep(0.3)
        async with reader(engine) as events:
            await until(holds(events, 4, 5))


async def test_sockets_are_in_a_private_folder_that_is_removed() -> None:
    async with core() as engine:
        folder = Path(engine.sockets.events.removeprefix("ipc://")).parent
        async with reader(engine):
            assert folder.stat().st_mode & 0o777 == 0o700
        assert not folder.exists()
