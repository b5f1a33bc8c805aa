"""Access to the files of jobs: on this machine, or at any URL that fsspec supports, such as s3://bucket/june/prompts.jsonl.

Every function raises OSError with a message for people, whatever the library of the store raises.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec


def is_remote(file: str) -> bool:
    """Returns whether a file name is a URL."""
    return "://" in file


def joined(folder: str, *names: str) -> str:
    """Returns the path of a file in a folder. An absolute name or a URL replaces what precedes it."""
    file = folder
    for name in names:
        file = name if name.startswith("/") or is_remote(name) else f"{file.rstrip('/')}/{name}"
    return file


def exists(file: str) -> bool:
    """Returns whether a file or folder exists."""
    with translated_errors():
        return bool(_store(file).exists(file))


@contextmanager
def reading(file: str) -> Iterator[IO[bytes]]:
    """Opens a file for reading."""
    with translated_errors():
        stream: Any = fsspec.open(file, "rb").open()
    with stream:
        yield stream


@contextmanager
def writing(file: str) -> Iterator[IO[bytes]]:
    """Opens a file for writing. If the block ends without an error, the file is replaced as a whole; otherwise it is unchanged."""
    with translated_errors():
        if is_remote(file):
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder, "file")
                with temporary.open("wb") as stream:
                    yield stream
                _store(file).put_file(str(temporary), file)
            return
        temporary = Path(f"{file}.whole")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def put(file: str, data: bytes) -> None:
    """Writes a file as a whole."""
    with translated_errors():
        _store(file).pipe_file(file, data)


def files_in(folder: str) -> list[str]:
    """Returns the files and folders in a folder, sorted by name; none if the folder does not exist."""
    with translated_errors():
        store = _store(folder)
        store.invalidate_cache()
        try:
            found = store.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        return sorted(store.unstrip_protocol(name) for name in found)


def remove(file: str) -> None:
    """Removes a file, or a folder with its content, if it exists."""
    with translated_errors():
        store = _store(file)
        store.invalidate_cache()
        if store.exists(file):
            store.rm(file, recursive=True)


def _store(file: str) -> Any:
    return fsspec.core.url_to_fs(file)[0]


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns every exception that the library of a store raises into an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # each store has exceptions of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
