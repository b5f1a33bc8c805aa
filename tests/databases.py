"""Databases for tests: SQLite in a file, and a local PostgreSQL server that is started for the session on a socket of its own."""

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

_SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
_START_TIMEOUT_S = 60.0


def _postgres_folder() -> Path | None:
    """Returns the folder with PostgreSQL's programs, or None."""
    found = shutil.which("postgres")
    if found and Path(found).resolve().with_name("initdb").exists():
        return Path(found).resolve().parent
    return next((folder for folder in _SERVERS if (folder / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The folder with the socket of a running server."""
    programs = _postgres_folder()
    if programs is None:
        pytest.skip("PostgreSQL is not installed here (Debian: apt install postgresql)")
    folder = tempfile.mkdtemp(prefix="neox-pg-")  # outside pytest's folder, which other users may not enter
    user = "nobody" if os.getuid() == 0 else None  # the server refuses to run as root
    if user:
        shutil.chown(folder, user)
    data = f"{folder}/data"
    made: list[str | Path] = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "--no-instructions"]
    subprocess.run(made, check=True, user=user, stdout=subprocess.DEVNULL, cwd=folder)
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    server = subprocess.Popen([programs / "postgres", "-D", data, *options], user=user, stderr=subprocess.DEVNULL, cwd=folder)
    try:
        _wait_until_it_answers(folder)
        yield folder
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/neox.db"
    folder, name = request.getfixturevalue("postgres"), f"test_{uuid.uuid4().hex}"
    with psycopg.connect(host=folder, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"postgresql+psycopg://postgres@/{name}?host={folder}"


def _wait_until_it_answers(folder: str) -> None:
    until_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            psycopg.connect(host=folder, user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)
        else:
            return
