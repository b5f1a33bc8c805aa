"""Keeps an up-to-date copy of all tenants in memory, so that calls are authenticated without a database query."""

import asyncio

import structlog
from sqlalchemy.exc import SQLAlchemyError

from neox_serve.core.tenancy.tenant_directory import TenantDirectory
from neox_serve.tenancy.tenant_store import TenantStore

_log = structlog.get_logger(__name__)

POLL_S = 0.3
"""Interval between two queries of the revision. A change takes effect within a second on every gateway."""


class DirectoryWatcher:
    """Follows the tenants in the database. While the database does not respond, the last known tenants stay valid."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store
        self._task: asyncio.Task[None] | None = None
        self.current = TenantDirectory()
        """The tenants as last read."""
        self.database_available = True
        """Whether the last query succeeded."""

    async def start(self) -> None:
        """Reads all tenants and starts to follow changes. Raises SQLAlchemyError if the first read fails."""
        self.current = await asyncio.to_thread(self._store.directory)
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stops following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def refresh(self) -> None:
        """Reads the tenants now if they have changed. Raises SQLAlchemyError."""
        if await asyncio.to_thread(self._store.revision) != self.current.revision:
            self.current = await asyncio.to_thread(self._store.directory)
            _log.info("tenants_loaded", revision=self.current.revision, tenants=len(self.current.tenants))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.refresh()
            except SQLAlchemyError as error:
                if self.database_available:
                    _log.error("tenant_database_unavailable", failure=type(error).__name__)
                self.database_available = False
            else:
                self.database_available = True
