"""Common code of the ladder's processes: `python -m tests.bench.ladder.hosts.<part> <settings.json> <folder>` runs until SIGTERM.

A part that serves has its host:port in `<folder>/<part>.address`. Peers read the router's address there at every attempt, instead of asking
Ray Serve. If the file is missing, there is no router.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import uvloop

from neox_serve.link.router_link_client import ResolveRouter
from neox_serve.settings import Settings, restore
from neox_serve.telemetry import logs

Start = Callable[[Settings, Path], AbstractAsyncContextManager[str]]
"""Runs a part with its files in a folder until the end of the block, and yields its host:port."""


def run(part: str, start: Start) -> None:
    """Runs a part as the main function of its process."""
    settings_file, folder = map(Path, sys.argv[1:3])
    settings = restore(json.loads(settings_file.read_text(encoding="utf-8")))
    logs.configure(settings.log, part)
    uvloop.run(_serve(start(settings, folder), address_file(folder, part)))


def address_file(folder: Path, part: str) -> Path:
    """Returns the file that contains a part's host:port while it serves."""
    return folder / f"{part}.address"


def router_lookup(folder: Path) -> ResolveRouter:
    """Returns a function that returns the router's host:port. It raises FileNotFoundError if there is no router."""

    async def resolve() -> str:
        return address_file(folder, "router").read_text(encoding="utf-8")

    return resolve


async def _serve(part: AbstractAsyncContextManager[str], file: Path) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with part as address:
        with _published(address, file):
            await stopped.wait()


@contextmanager
def _published(address: str, file: Path) -> Iterator[None]:
    """Writes the file atomically, because others may read it at any time."""
    partial = file.with_suffix(".new")
    partial.write_text(address, encoding="utf-8")
    partial.replace(file)
    try:
        yield
    finally:
        file.unlink()
