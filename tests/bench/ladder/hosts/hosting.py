"""What the ladder's processes have in common: `python -m tests.bench.ladder.hosts.<part> <settings.json> <folder>` runs until SIGTERM.

A part that serves leaves its host:port in `<folder>/<part>.address` while it does. Peers read the router's there, at every attempt, as
they would ask Ray Serve for it; where there is no file, there is no router.
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
"""Runs a part, in a folder, for as long as the block lasts; gives its host:port."""


def run(part: str, start: Start) -> None:
    """The main function of a host."""
    settings_file, folder = map(Path, sys.argv[1:3])
    settings = restore(json.loads(settings_file.read_text(encoding="utf-8")))
    logs.configure(settings.log, part)
    uvloop.run(_serve(start(settings, folder), address_file(folder, part)))


def address_file(folder: Path, part: str) -> Path:
    """Where a part's host:port stands while it serves."""
    return folder / f"{part}.address"


def router_lookup(folder: Path) -> ResolveRouter:
    """Gives the host:port of the router in this folder; raises FileNotFoundError where there is none."""

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
    """Others read the file at any moment: it is whole or not there."""
    aside = file.with_suffix(".new")
    aside.write_text(address, encoding="utf-8")
    aside.replace(file)
    try:
        yield
    finally:
        file.unlink()
