"""The load generator: `python -m neox_serve.loadgen.process <file descriptor>`.

One process for each start of a system, so that a client's cost is its own and no state is carried over.
"""

import asyncio
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import uvloop

from neox_serve.loadgen.messages import Connect, Ended, Failed, Progress, Ready, Records, Run
from neox_serve.loadgen.runner import ClosedLoop
from neox_serve.loadgen.targets import Target

_PROGRESS_INTERVAL_S = 0.5


async def serve(connection: Connection) -> None:
    """Connects as told, then runs workloads until told to stop."""
    order = await asyncio.to_thread(connection.recv)
    assert isinstance(order, Connect)
    async with order.target.connect() as target:
        connection.send(Ready())
        while isinstance(order := await asyncio.to_thread(connection.recv), Run):
            await _run(order, target, connection)


async def _run(order: Run, target: Target, connection: Connection) -> None:
    loop = ClosedLoop(order.workload, target, _throttled(lambda ended: connection.send(Progress(ended))))
    await loop.run()
    connection.send(Ended())
    connection.send(Records(loop.records()))


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
    """Serves the bench at the other end of the inherited socket that the first argument numbers."""
    with Connection(int(sys.argv[1])) as connection:
        try:
            uvloop.run(serve(connection))
        except Exception:  # noqa: BLE001 - the process boundary: the bench reports it
            connection.send(Failed(traceback.format_exc()))


if __name__ == "__main__":
    main()
