"""Where files of jobs are: on this machine, or at any URL that fsspec knows, such as s3://bucket/june/prompts.jsonl.

Everything here raises OSError with words for people, whatever the store's own library raises.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec


def is_remote(file: str) -> bool:
    """Whether it is a URL."""
    return "://" in file


def joined(folder: str, *names: str) -> str:
    """A file below a folder; a name that is absolute or a URL is itself."""
    file = folder
    for name in names:
        file = name if name.startswith("/") or is_remote(name) else f"{file.rstrip('/')}/{name}"
    return file


def exists(file: str) -> bool:
    """Whether there is such a file or folder."""
    with told():
        return bool(_store(file).exists(file))


@contextmanager
def reading(file: str) -> Iterator[IO[bytes]]:
    """The file, open for reading."""
    with told():
        stream: Any = fsspec.open(file, "rb").open()
    with stream:
        yield stream


@contextmanager
def writing(file: str) -> Iterator[IO[bytes]]:
    """The file, to be written: it is there as a whole once the block ends without an error, and otherwise as it was before."""
    with told():
        if is_remote(file):
            with tempfile.TemporaryDirectory() as folder:
                aside = Path(folder, "file")
                with aside.open("wb") as stream:
                    yield stream
                _store(file).put_file(str(aside), file)
            return
        aside = Path(f"{file}.whole")
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)


def put(file: str, data: bytes) -> None:
    """A whole file."""
    with told():
        _store(file).pipe_file(file, data)


def files_in(folder: str) -> list[str]:
    """The files right below a folder, by name; none where there is no folder."""
    with told():
        store = _store(folder)
        store.invalidate_cache()
        try:
            found = store.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        return sorted(store.unstrip_protocol(name) for name in found)


def remove(file: str) -> None:
    """A file, or a folder with all that is in it; nothing where there is none."""
    with told():
        store = _store(file)
        store.invalidate_cache()
        if store.exists(file):
            store.rm(file, recursive=True)


def _store(file: str) -> Any:
    return fsspec.core.url_to_fs(file)[0]


@contextmanager
def told() -> Iterator[None]:
    """Makes an OSError of what a store's library raises."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # each store has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
