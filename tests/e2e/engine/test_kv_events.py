"""Hearing vLLM's KV events from its own publisher: from the start, late, after a gap, and where what was missed cannot be had any more."""

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
    """As much of an engine core as publishes."""

    sockets: EventSockets
    publisher: ZmqEventPublisher

    def store(self, *numbers: int) -> None:
        """A step that stores one-block prompts."""
        self.publish(*(BlockStored([bytes([number])], None, ids(number), SIZE, None, "GPU", None) for number in numbers))

    def publish(self, *events: BlockStored | BlockRemoved) -> None:
        """One step's batch."""
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
    heard = CacheEventReader(core.sockets, block_tokens=SIZE, model=MODEL)
    heard.start()
    yield heard
    await heard.close()


def holds(reader: CacheEventReader, *numbers: int) -> Callable[[], bool]:
    expected = {name(number) for number in numbers}
    return lambda: set(reader.ledger.blocks()) == expected


async def test_late_reader_is_told_what_came_before_it() -> None:
    async with core() as engine:
        engine.store(1)
        engine.publish(BlockRemoved([bytes([1])], "GPU"))
        engine.store(2, 3)
        await asyncio.sleep(0.2)
        async with reader(engine) as heard:
            await until(holds(heard, 2, 3))
            engine.store(4)
            await until(holds(heard, 2, 3, 4))


async def test_gap_is_closed_from_what_the_core_keeps() -> None:
    async with core() as engine, reader(engine) as heard:
        engine.store(1)
        await until(holds(heard, 1))
        next(engine.publisher._seq_gen)  # as if a batch had been published and lost, and the core had it no more
        engine.store(2)
        await until(holds(heard, 2))
        heard._next -= 1  # as if the last one had not come
        heard._names.forget()
        engine.store(3)
        await until(holds(heard, 2, 3))


async def test_what_the_core_no_longer_keeps_leaves_nothing_believed_of_before() -> None:
    async with core(buffer_steps=2) as engine:
        for number in range(1, 6):
            engine.store(number)
        await asyncio.sleep(0.3)
        async with reader(engine) as heard:
            await until(holds(heard, 4, 5))


async def test_sockets_are_in_a_folder_for_this_user_alone_and_leave_nothing() -> None:
    async with core() as engine:
        folder = Path(engine.sockets.events.removeprefix("ipc://")).parent
        async with reader(engine):
            assert folder.stat().st_mode & 0o777 == 0o700
        assert not folder.exists()
