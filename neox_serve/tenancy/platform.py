"""All that a gateway keeps in the database, opened and closed as one."""

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


class Platform:
    """The database of one gateway. secret: the key of usage chains and cache salts."""

    def __init__(self, database: Engine, secret: bytes, gateway_id: str) -> None:
        self._database = database
        self.secret = secret
        self.tenants = TenantStore(database)
        self.usage = UsageStore(database)
        self.jobs = JobStore(database)
        self.directory = DirectoryWatcher(self.tenants)
        self.writer = UsageWriter(self.usage, Chain(secret, gateway_id))

    @classmethod
    async def open(cls, settings: AccessSource, gateway_id: str) -> Self:
        """Opens the database, makes its tables where they are not there, and follows it. Raises SettingsError."""
        secret = await asyncio.to_thread(read_secret, secret_file(settings), make=settings.access.secret_file is None)
        database = await asyncio.to_thread(open_database, database_url(settings))
        platform = cls(database, secret, gateway_id)
        await platform.directory.start()
        platform.writer.start()
        return platform

    async def close(self) -> None:
        """Writes what waits, and closes the database."""
        await self.directory.close()
        await self.writer.close()
        await asyncio.to_thread(self._database.dispose)


async def spent_recently(settings: AccessSource) -> dict[str, list[Spent]]:
    """By gateway: what was used this day, and in the last minute. Raises SettingsError where the database cannot be used."""

    def read() -> dict[str, list[Spent]]:
        database = open_database(database_url(settings))
        try:
            now_s = time.time()
            return UsageStore(database).spent(round(min(day_of(now_s) * DAY_S, now_s - MINUTE_S) * 1e6))
        finally:
            database.dispose()

    return await asyncio.to_thread(read)


def read_secret(path: Path, *, make: bool) -> bytes:
    """The secret in a file. make: makes one where there is none, readable by this user alone. Raises SettingsError."""
    try:
        if make and not path.exists():
            _make_secret(path)
        secret = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"access.secret_file: cannot use {path}: {error.strerror}") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise SettingsError(f"access.secret_file: {path} has {len(secret)} bytes, must have {MIN_SECRET_BYTES} or more")
    return secret


def _make_secret(path: Path) -> None:
    """Several processes may come here at once: the first makes it, whole from its first moment."""
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
