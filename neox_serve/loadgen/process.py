"""The load generator's process: `python -m neox_serve.loadgen.process <file descriptor>`.

Each measured system gets a process of its own, so that the client's CPU time can be measured and no state is carried over.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import uvloop

from neox_serve.loadgen.messages import Connect, Ended, Failed, Interrupt, Progress, Ready, Run, Stop
from neox_serve.loadgen.runner import Runner
from neox_serve.loadgen.targets import Target

_PROGRESS_INTERVAL_S = 0.5
"""Minimum interval between two progress messages."""


class _Orders:
    """Receives orders and queues them. An interrupt is passed on immediately. If the caller dies, it counts as an order to stop.

    A thread receives, because an event loop reader would make the socket non-blocking, and records are larger than its buffer.
    """

    def __init__(self, connection: Connection) -> None:
        self.runner: Runner | None = None
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._orders: asyncio.Queue[object] = asyncio.Queue()
        threading.Thread(target=self._receive, daemon=True).start()

    async def next(self) -> object:
        """Waits for the next order."""
        return await self._orders.get()

    def _receive(self) -> None:
        order: object = None
        while not isinstance(order, Stop):
            try:
                order = self._connection.recv()
            except (EOFError, OSError):
                order = Stop()
            self._loop.call_soon_threadsafe(self._take, order)

    def _take(self, order: object) -> None:
        if isinstance(order, (Interrupt, Stop)) and self.runner is not None:
            self.runner.interrupt()
        if not isinstance(order, Interrupt):
            self._orders.put_nowait(order)


async def serve(connection: Connection) -> None:
    """Connects to the target, then runs loads until it is told to stop."""
    orders = _Orders(connection)
    order = await orders.next()
    assert isinstance(order, Connect)
    async with order.target.connect() as target:
        connection.send(Ready())
        while isinstance(order := await orders.next(), Run):
            await _run(order, target, connection, orders)


async def _run(order: Run, target: Target, connection: Connection, orders: _Orders) -> None:
    runner = Runner(order.load, target, _throttled(lambda ended: connection.send(Progress(ended))))
    orders.runner = runner
    await runner.run()
    orders.runner = None
    connection.send(Ended())
    connection.send(runner.outcome())


def _throttled(tell: Callable[[int], None]) -> Callable[[int], None]:
    """Returns a function that calls `tell` at most twice per second."""
    next_s = 0.0

    def maybe(ended: int) -> None:
        nonlocal next_s
        now_s = time.monotonic()
        if now_s >= next_s:
            next_s = now_s + _PROGRESS_INTERVAL_S
            tell(ended)

    return maybe


def main() -> None:
    """Serves the caller over the inherited socket whose file descriptor is the first argument."""
    with Connection(int(sys.argv[1])) as connection:
        try:
            uvloop.run(serve(connection))
        except BrokenPipeError:
            return
        except Exception:  # noqa: BLE001 - the process boundary: the other end reports it
            connection.send(Failed(traceback.format_exc()))


if __name__ == "__main__":
    main()
