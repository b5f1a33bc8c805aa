"""Writes usage records to the database in batches, in the background, and retries while the database is unavailable."""

import asyncio
from contextlib import suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError

from neox_serve.core.tenancy.usage import Chain, ChainedRecord, UsageRecord
from neox_serve.tenancy.usage_store import UsageStore

_log = structlog.get_logger(__name__)

FLUSH_S = 0.5
"""Interval between two batches. A gateway that is killed loses at most the records of one interval."""
_MAX_AT_ONCE = 2_000
"""Maximum number of records per batch."""


class UsageWriter:
    """Writes one gateway's records. They are kept in memory while the database is unavailable."""

    def __init__(self, store: UsageStore, chain: Chain) -> None:
        self._store = store
        self._chain = chain
        self._waiting: list[ChainedRecord] = []
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of records that are not yet in the database."""
        return len(self._waiting)

    def start(self) -> None:
        """Starts the background task."""
        self._task = asyncio.create_task(self._run())

    def put(self, record: UsageRecord) -> None:
        """Queues a record. Does not block."""
        self._waiting.append(self._chain.append(record))

    async def close(self) -> None:
        """Stops the background task and writes the remaining records. Records that cannot be written are lost, with a log entry."""
        self._closing.set()
        if self._task is not None:
            await self._task
        if self._waiting:
            _log.error("usage_records_lost", records=len(self._waiting))

    async def _run(self) -> None:
        """Flushes periodically. A flush that has started is never cancelled, because its records would be written twice."""
        while not self._closing.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), FLUSH_S)
            await self._flush()
        while self._waiting and await self._flush():
            pass

    async def _flush(self) -> bool:
        """Writes one batch. Returns False if the database is unavailable."""
        batch = self._waiting[:_MAX_AT_ONCE]
        if not batch:
            return True
        try:
            await asyncio.to_thread(self._store.append, batch)
        except SQLAlchemyError as error:
            _log.warning("usage_database_unavailable", records=len(self._waiting), failure=type(error).__name__)
            return False
        del self._waiting[: len(batch)]
        return True
