"""The load generator's process: `python -m neox_serve.loadgen.process <file descriptor>`.

One process for each start of a system, so that a client's cost is its own and no state is carried over.
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


class _Orders:
    """What is to be done, in turn; an interrupt is passed on the moment it comes. The other end's death is an order to stop.

    A thread receives: a loop's reader would make the socket non-blocking, and records are larger than its buffer.
    """

    def __init__(self, connection: Connection) -> None:
        self.runner: Runner | None = None
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._orders: asyncio.Queue[object] = asyncio.Queue()
        threading.Thread(target=self._receive, daemon=True).start()

    async def next(self) -> object:
        """The next order."""
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
    """Connects as told, then runs loads until told to stop."""
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
    """Passes on a few calls a second."""
    next_s = 0.0

    def maybe(ended: int) -> None:
        nonlocal next_s
        now_s = time.monotonic()
        if now_s >= next_s:
            next_s = now_s + _PROGRESS_INTERVAL_S
            tell(ended)

    return maybe


def main() -> None:
    """Serves the other end of the inherited socket that the first argument numbers."""
    with Connection(int(sys.argv[1])) as connection:
        try:
            uvloop.run(serve(connection))
        except BrokenPipeError:
            return
        except Exception:  # noqa: BLE001 - the process boundary: the other end reports it
            connection.send(Failed(traceback.format_exc()))


if __name__ == "__main__":
    main()
