"""Everything that a gateway stores in the database, opened and closed together."""

import asyncio
import os
import secrets
import time
from pathlib import Path
from typing import Self

from sqlalchemy import Engine

from neox_serve.core.tenancy.quota import DAY_S, MINUTE_S, Spent, day_of
from neox_serve.core.tenancy.usage import Chain
from neox_serve.settings import AccessSource, SettingsError, database_url, secret_file
from neox_serve.tenancy.database import open_database
from neox_serve.tenancy.directory_watcher import DirectoryWatcher
from neox_serve.tenancy.job_store import JobStore
from neox_serve.tenancy.tenant_store import TenantStore
from neox_serve.tenancy.usage_store import UsageStore
from neox_serve.tenancy.usage_writer import UsageWriter

MIN_SECRET_BYTES = 32
"""Minimum length of the secret."""


class Platform:
    """The database access of one gateway."""

    def __init__(self, database: Engine, secret: bytes, gateway_id: str) -> None:
        self._database = database
        self.secret = secret
        """Key of usage chains and cache salts."""
        self.tenants = TenantStore(database)
        self.usage = UsageStore(database)
        self.jobs = JobStore(database)
        self.directory = DirectoryWatcher(self.tenants)
        self.writer = UsageWriter(self.usage, Chain(secret, gateway_id))

    @classmethod
    async def open(cls, settings: AccessSource, gateway_id: str) -> Self:
        """Opens the database, creates or migrates its tables, and starts its background tasks. Raises SettingsError."""
        secret = await asyncio.to_thread(read_secret, secret_file(settings), create=settings.access.secret_file is None)
        database = await asyncio.to_thread(open_database, database_url(settings))
        platform = cls(database, secret, gateway_id)
        await platform.directory.start()
        platform.writer.start()
        return platform

    async def close(self) -> None:
        """Writes pending usage records and closes the database."""
        await self.directory.close()
        await self.writer.close()
        await asyncio.to_thread(self._database.dispose)


async def spent_recently(settings: AccessSource) -> dict[str, list[Spent]]:
    """Returns, by gateway, the use of this day and of the last minute. Raises SettingsError if the database cannot be used."""

    def read() -> dict[str, list[Spent]]:
        database = open_database(database_url(settings))
        try:
            now_s = time.time()
            return UsageStore(database).spent(round(min(day_of(now_s) * DAY_S, now_s - MINUTE_S) * 1e6))
        finally:
            database.dispose()

    return await asyncio.to_thread(read)


def read_secret(path: Path, *, create: bool) -> bytes:
    """Reads the secret from a file. create: create a missing file, readable only by this user. Raises SettingsError."""
    try:
        if create and not path.exists():
            _create_secret(path)
        secret = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"access.secret_file: cannot use {path}: {error.strerror}") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise SettingsError(f"access.secret_file: {path} has {len(secret)} bytes; it must have at least {MIN_SECRET_BYTES}")
    return secret


def _create_secret(path: Path) -> None:
    """Creates the secret file atomically. If several processes do so at once, the first one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    fresh.touch(mode=0o600)
    fresh.write_bytes(secrets.token_bytes(MIN_SECRET_BYTES))
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
