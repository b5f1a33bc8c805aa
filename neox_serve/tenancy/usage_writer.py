"""Usage records on their way to the database: in batches, off the token path, again where the database does not answer."""

import asyncio
from contextlib import suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError

from neox_serve.core.tenancy.usage import Chain, ChainedRecord, UsageRecord
from neox_serve.tenancy.usage_store import UsageStore

_log = structlog.get_logger(__name__)

FLUSH_S = 0.5
"""Between two batches: what a gateway that is killed loses at most."""
_MAX_AT_ONCE = 2_000


class UsageWriter:
    """Writes one gateway's records. Records wait in memory while the database does not answer."""

    def __init__(self, store: UsageStore, chain: Chain) -> None:
        self._store = store
        self._chain = chain
        self._waiting: list[ChainedRecord] = []
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Records not yet in the database."""
        return len(self._waiting)

    def start(self) -> None:
        """Goes on writing what is put."""
        self._task = asyncio.create_task(self._run())

    def put(self, record: UsageRecord) -> None:
        """Takes a record; does not wait."""
        self._waiting.append(self._chain.append(record))

    async def close(self) -> None:
        """Writes what waits, once more, and ends."""
        self._closing.set()
        if self._task is not None:
            await self._task
        if self._waiting:
            _log.error("usage records are lost: the database does not answer", records=len(self._waiting))

    async def _run(self) -> None:
        """Flushes again and again; one that has begun is never cut off, for its records would be written twice."""
        while not self._closing.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), FLUSH_S)
            await self._flush()
        while self._waiting and await self._flush():
            pass

    async def _flush(self) -> bool:
        batch = self._waiting[:_MAX_AT_ONCE]
        if not batch:
            return True
        try:
            await asyncio.to_thread(self._store.append, batch)
        except SQLAlchemyError as error:
            _log.warning("usage records wait: the database does not answer", records=len(self._waiting), failure=type(error).__name__)
            return False
        del self._waiting[: len(batch)]
        return True
