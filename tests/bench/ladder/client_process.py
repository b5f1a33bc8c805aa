"""The ladder's client: `python -m tests.bench.ladder.client_process <file descriptor> <address>`.

It runs the same closed loop as the load generator, on connections opened anew for each order, and reads the stamps afterwards.
"""

import asyncio
import sys
import time
import traceback
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc
import uvloop

from neox_serve.v1 import inference_service_pb2
from tests.bench.closed_loop import ClosedLoop
from tests.bench.ladder.client_messages import Go, Order, Result
from tests.bench.ladder.stamps import lags
from tests.bench.load_messages import Ended, Failed, Progress, Ready
from tests.bench.records import Arrival, TokenIds
from tests.bench.targets import Stamp, Target
from tests.bench.targets.grpc_gateway import GatewaySpec, stream_request

_METHOD = "/neox_serve.v1.InferenceService/StreamGenerate"
_PROGRESS_INTERVAL_S = 0.5

# The least that HTTP/2 lets a client take in without reading, and no growing of it.
_SMALL_WINDOW = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
_STALLED_TOKENS = 1_900
_STALLED_SEQUENCES = 8
_STALLED_LOGPROBS = 10
"""Some 90 kB a second, of which the window takes the first moment's."""
_STALLED_BEFORE_S = 0.5


class StampedTarget:
    """A gateway target that finds the lags of what it decodes. ramp_tokens: those that do not count, of each response."""

    def __init__(self, target: Target, ramp_tokens: int = 0) -> None:
        self._target = target
        self._ramp_tokens = ramp_tokens
        self.lags_s = array("d")

    async def send(self, prompt: TokenIds, output_tokens: int, stamp: Stamp) -> None:
        """As the target does."""
        await self._target.send(prompt, output_tokens, stamp)

    def decode(self, stamped: Sequence[tuple[float, bytes]]) -> list[Arrival]:
        """One arrival a message. Raises ValueError where a token has no stamp."""
        arrivals, lags_s = list[Arrival](), list[float]()
        for at_s, message in stamped:
            chunk = inference_service_pb2.StreamGenerateResponse.FromString(message).chunk
            token_ids = tuple(chunk.token_ids)
            lags_s += lags(at_s, chunk.text, len(token_ids))
            arrivals.append(Arrival(at_s, token_ids))
        self.lags_s.extend(lags_s[self._ramp_tokens :])
        return arrivals


async def serve(connection: Connection, address: str) -> None:
    """Carries out orders until the other end closes."""
    while True:
        try:
            order = await asyncio.to_thread(connection.recv)
        except EOFError:
            return
        await _carry_out(order, connection, address)


async def _carry_out(order: Order, connection: Connection, address: str) -> None:
    async with GatewaySpec(address, order.channels).connect() as target, _stalled_client(address, order):
        connection.send(Ready())
        assert isinstance(await asyncio.to_thread(connection.recv), Go)
        stamped = StampedTarget(target, order.ramp_tokens)
        loop = ClosedLoop(order.workload, stamped, _Progress(connection).tell)
        await loop.run()
        connection.send(Ended())
    records = loop.records()
    connection.send(Result(records, stamped.lags_s))


@asynccontextmanager
async def _stalled_client(address: str, order: Order) -> AsyncIterator[None]:
    """A client that asks for a lot and reads none of it, where that is ordered; its window is full when the block begins."""
    if not order.stalled:
        yield
        return
    async with grpc.aio.insecure_channel(address, _SMALL_WINDOW) as channel:
        method: Any = channel.unary_stream(_METHOD)
        call = method(_greedy_request(next(order.workload.prompts())))
        await asyncio.sleep(_STALLED_BEFORE_S)
        try:
            yield
        finally:
            call.cancel()


def _greedy_request(prompt: TokenIds) -> bytes:
    """More than a client takes that does not read."""
    request = stream_request(prompt, _STALLED_TOKENS)
    request.parameters.n = _STALLED_SEQUENCES
    request.parameters.logprobs = _STALLED_LOGPROBS
    return request.SerializeToString()


class _Progress:
    """Passes on a few of the calls that it gets each second."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._next_s = 0.0

    def tell(self, ended: int) -> None:
        """So many requests have ended."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _PROGRESS_INTERVAL_S
            self._connection.send(Progress(ended))


def main() -> None:
    """Serves the ladder at the other end of the inherited socket that the first argument numbers."""
    with Connection(int(sys.argv[1])) as connection:
        try:
            uvloop.run(serve(connection, sys.argv[2]))
        except Exception:  # noqa: BLE001 - the process boundary: the ladder reports it
            connection.send(Failed(traceback.format_exc()))


if __name__ == "__main__":
    main()
