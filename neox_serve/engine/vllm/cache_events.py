"""Receives vLLM's KV events from its engine core over ZeroMQ.

The core publishes a numbered batch of events for each step that changed its prefix cache, and keeps the latest batches for replay. A
subscriber misses what was published before its connection was established, so it requests a replay at the start and whenever it detects a
gap. If the core no longer has a missed batch, everything that is known about the cache is dropped and learnt again from later events.
"""

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import structlog
import zmq
import zmq.asyncio
from vllm.config.kv_events import KVEventsConfig
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

from neox_serve.core.prefix_cache.block_ledger import BlockLedger
from neox_serve.engine.cache_events import BlockNames, BlocksCleared, BlocksRemoved, BlocksStored, CacheEvent

_log = structlog.get_logger(__name__)

_REPLAY_TIMEOUT_S = 5.0
_NO_LIMIT = 0
_END = (-1).to_bytes(8, "big", signed=True)


class EventSockets:
    """The sockets on which an engine core publishes. They carry prompts, so they are in a folder that only this user can read."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="neox-kv-")
        self.events = f"ipc://{Path(self._folder.name) / 'events'}"
        self.replay = f"ipc://{Path(self._folder.name) / 'replay'}"

    def config(self) -> KVEventsConfig:
        """Returns the configuration to start vLLM with."""
        return KVEventsConfig(
            enable_kv_cache_events=True, publisher="zmq", endpoint=self.events, replay_endpoint=self.replay, hwm=_NO_LIMIT
        )

    def remove(self) -> None:
        """Removes the folder with the sockets."""
        self._folder.cleanup()


class CacheEventReader:
    """Maintains a ledger of one engine's prefix cache. It may be used on one event loop only. Call `start` once the engine runs."""

    def __init__(self, sockets: EventSockets, *, block_tokens: int, model: str) -> None:
        self.ledger = BlockLedger(block_tokens)
        self._names = BlockNames(self.ledger, model)
        self._sockets = sockets
        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self._next = 0
        self._context = zmq.asyncio.Context()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts receiving events."""
        self._task = asyncio.get_running_loop().create_task(self._listen())

    async def close(self) -> None:
        """Stops receiving events and removes the sockets."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)
        self._sockets.remove()

    async def _listen(self) -> None:
        with self._context.socket(zmq.SUB) as subscriber:
            subscriber.set_hwm(_NO_LIMIT)
            subscriber.subscribe(b"")
            subscriber.connect(self._sockets.events)
            await self._catch_up()
            while True:
                _, number, payload = await subscriber.recv_multipart()
                if int.from_bytes(number, "big") > self._next:
                    await self._catch_up()
                self._take(number, payload)

    async def _catch_up(self) -> None:
        """Requests a replay of the missed batches. If the core does not answer in time, the next gap triggers another request."""
        with self._context.socket(zmq.DEALER) as requester:
            requester.connect(self._sockets.replay)
            await requester.send_multipart((b"", self._next.to_bytes(8, "big")))
            try:
                async with asyncio.timeout(_REPLAY_TIMEOUT_S):
                    while (parts := await requester.recv_multipart())[2] != _END:
                        self._take(*parts[2:4])
            except TimeoutError:
                _log.warning("kv_events_not_replayed", next_batch=self._next)

    def _take(self, number: bytes, payload: bytes) -> None:
        """Applies a batch, unless it was applied before."""
        arrived = int.from_bytes(number, "big")
        if arrived < self._next:
            return
        if arrived > self._next:
            _log.warning("kv_events_missed", batches=arrived - self._next)
            self._names.forget()
        self._next = arrived + 1
        batch: KVEventBatch = self._decoder.decode(payload)
        self._names.take(_events(batch.events))


def _events(events: Sequence[BlockStored | BlockRemoved | AllBlocksCleared]) -> Iterator[CacheEvent]:
    translations: dict[type, Callable[..., CacheEvent]] = {
        BlockStored: _stored,
        BlockRemoved: lambda event: BlocksRemoved(event.block_hashes),
        AllBlocksCleared: lambda _: BlocksCleared(),
    }
    return (translations[type(event)](event) for event in events)


def _stored(event: BlockStored) -> BlocksStored:
    """The extra keys of a prompt's first block are the adapter's name, if there is one, and then the salt."""
    first = (event.extra_keys or [None])[0] or ()
    salts = [key for key in first[event.lora_name is not None :] if isinstance(key, str)]
    return BlocksStored(event.block_hashes, event.parent_block_hash, event.token_ids, event.lora_name, salts[0] if salts else None)
