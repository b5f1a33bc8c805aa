"""Opens the database and migrates its tables to the current schema."""

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from neox_serve.settings import SettingsError

_MIGRATION_LOCK = 0x6E656F78
"""Key of the PostgreSQL advisory lock that makes processes that start together migrate one after the other."""
_SQLITE_WAIT_S = 15.0
"""How long a statement waits for another writer."""


def open_database(url: str) -> Engine:
    """Opens the database at a SQLAlchemy URL and migrates it. Raises SettingsError if it cannot be used."""
    try:
        parsed = make_url(url)
        file = parsed.database if parsed.get_backend_name() == "sqlite" and parsed.database else ":memory:"
        with _alone(file):
            database = _sqlite(url) if parsed.get_backend_name() == "sqlite" else create_engine(url, pool_pre_ping=True)
            with database.connect() as connection:
                _migrate(connection)
    except (SQLAlchemyError, OSError, ImportError) as error:
        shown = make_url(url).render_as_string(hide_password=True) if "://" in url else url
        raise SettingsError(f"access.database_url: cannot use {shown}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    return database


@contextmanager
def _alone(file: str) -> Iterator[None]:
    """Locks an SQLite file against other processes while it is opened. SQLite's switch to a write-ahead log does not wait for locks."""
    if file == ":memory:":
        yield
        return
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sqlite(url: str) -> Engine:
    """Opens an SQLite database in which writers wait for each other and readers are not blocked."""
    database = create_engine(url, connect_args={"timeout": _SQLITE_WAIT_S})

    @event.listens_for(database, "connect")
    def set_up(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return database


def _migrate(connection: Connection) -> None:
    """Applies all migrations that the database lacks."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.commit()
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})
        connection.commit()
