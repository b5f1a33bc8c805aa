"""The tenants as they are now, kept in memory: calls are authenticated without asking the database."""

import asyncio

import structlog
from sqlalchemy.exc import SQLAlchemyError

from neox_serve.core.tenancy.tenant_directory import TenantDirectory
from neox_serve.tenancy.tenant_store import TenantStore

_log = structlog.get_logger(__name__)

POLL_S = 0.3
"""Between two looks at the revision, one small query; a change holds within a second on every gateway."""


class DirectoryWatcher:
    """Follows the database. While that does not answer, what was last known goes on to hold."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store
        self._task: asyncio.Task[None] | None = None
        self.current = TenantDirectory()
        self.answers = True

    async def start(self) -> None:
        """Reads all, and goes on following. Raises SQLAlchemyError where even the first look fails."""
        self.current = await asyncio.to_thread(self._store.directory)
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Ends it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def refresh(self) -> None:
        """Looks now. Raises SQLAlchemyError."""
        if await asyncio.to_thread(self._store.revision) != self.current.revision:
            self.current = await asyncio.to_thread(self._store.directory)
            _log.info("tenants read", revision=self.current.revision, tenants=len(self.current.tenants))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.refresh()
            except SQLAlchemyError as error:
                if self.answers:
                    _log.error("the database of tenants does not answer; what is known goes on to hold", failure=type(error).__name__)
                self.answers = False
            else:
                self.answers = True
