"""vLLM's KV events, heard from its engine core over ZeroMQ.

The core publishes a numbered batch for each step that changed its prefix cache, and keeps the last ones for whoever missed any. Whoever
subscribes misses what was published before its connection was up, so all is asked for once at the start, and again at each gap. What cannot
be had any more is gone: then nothing is known of what the cache holds, and it is learnt anew.
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
    """Where an engine core publishes: sockets in a folder of their own that only this user can enter, for they carry prompts."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="neox-kv-")
        self.events = f"ipc://{Path(self._folder.name) / 'events'}"
        self.replay = f"ipc://{Path(self._folder.name) / 'replay'}"

    def config(self) -> KVEventsConfig:
        """What vLLM is to be started with."""
        return KVEventsConfig(
            enable_kv_cache_events=True, publisher="zmq", endpoint=self.events, replay_endpoint=self.replay, hwm=_NO_LIMIT
        )

    def remove(self) -> None:
        """Removes the folder."""
        self._folder.cleanup()


class CacheEventReader:
    """Keeps a ledger of what one engine's prefix cache holds. Used on one event loop; `start` once the engine is up."""

    def __init__(self, sockets: EventSockets, *, block_tokens: int, model: str) -> None:
        self.ledger = BlockLedger(block_tokens)
        self._names = BlockNames(self.ledger, model)
        self._sockets = sockets
        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self._next = 0
        self._context = zmq.asyncio.Context()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to listen."""
        self._task = asyncio.get_running_loop().create_task(self._listen())

    async def close(self) -> None:
        """Stops, and removes the sockets."""
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
        """Takes all that the core still has. A core that does not answer in time is asked again at the next gap."""
        with self._context.socket(zmq.DEALER) as asker:
            asker.connect(self._sockets.replay)
            await asker.send_multipart((b"", self._next.to_bytes(8, "big")))
            try:
                async with asyncio.timeout(_REPLAY_TIMEOUT_S):
                    while (parts := await asker.recv_multipart())[2] != _END:
                        self._take(*parts[2:4])
            except TimeoutError:
                _log.warning("kv_events_not_replayed", next_batch=self._next)

    def _take(self, number: bytes, payload: bytes) -> None:
        """A batch; one that has been taken already is passed over."""
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
    """The extra keys of a prompt's first block are the adapter's name, where there is one, and then its salt."""
    first = (event.extra_keys or [None])[0] or ()
    salts = [key for key in first[event.lora_name is not None :] if isinstance(key, str)]
    return BlocksStored(event.block_hashes, event.parent_block_hash, event.token_ids, event.lora_name, salts[0] if salts else None)
