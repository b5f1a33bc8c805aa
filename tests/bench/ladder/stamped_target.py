"""What the load generator drives on the ladder: a gateway target that reads stamps, and a client that never reads."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from neox_serve.loadgen.records import Response
from neox_serve.loadgen.targets import Stamp, Target, TargetError
from neox_serve.loadgen.targets.grpc_gateway import GatewaySpec, stream_request
from neox_serve.loadgen.workloads import Prompt, Synthetic
from neox_serve.v1.inference_service_pb2 import StreamGenerateResponse
from tests.bench.ladder.stamps import lags

_METHOD = "/neox_serve.v1.InferenceService/StreamGenerate"

# The least that HTTP/2 lets a client take in without reading, and no growing of it.
_SMALL_WINDOW = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
_STALLED_TOKENS = 1_900
_STALLED_SEQUENCES = 8
_STALLED_LOGPROBS = 10
"""Some 90 kB a second, of which the window takes the first moment's."""
_STALLED_BEFORE_S = 0.5


class StampedTarget:
    """Finds the lags of what it decodes, in no order. ramp_tokens: those that do not count, of each response."""

    def __init__(self, target: Target, ramp_tokens: int = 0) -> None:
        self._target = target
        self._ramp_tokens = ramp_tokens
        self.lags_s = array("d")

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """As the target does."""
        await self._target.send(prompt, output_tokens, stamp)

    def decode(self, stamped: Sequence[tuple[float, bytes]]) -> Response:
        """As the target does. Raises ValueError where a token has no stamp."""
        answer, lags_s = self._target.decode(stamped), list[float]()
        for arrival, (_, message) in zip(answer.arrivals, stamped, strict=True):
            lags_s += lags(arrival.at_s, StreamGenerateResponse.FromString(message).chunk.text, len(arrival.token_ids))
        self.lags_s.extend(lags_s[self._ramp_tokens :])
        return answer


@dataclass(frozen=True, slots=True)
class StampedSpec:
    """stalled: a further client, which never reads, beside the others. lags_file: gets all lags, when the load generator disconnects."""

    gateway: GatewaySpec
    lags_file: Path
    ramp_tokens: int = 0
    stalled: bool = False

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Target]:
        """As the gateway's; beside it, the window of the client that never reads is full. Raises TargetError where it is refused."""
        async with self.gateway.connect() as target:
            stamped = StampedTarget(target, self.ramp_tokens)
            if self.stalled:
                async with _stalled_client(self.gateway.address):
                    yield stamped
            else:
                yield stamped
        self.lags_file.write_bytes(stamped.lags_s.tobytes())

    def lags_s(self) -> "array[float]":
        """Of every token after the ramp, once the load generator has disconnected."""
        return array("d", self.lags_file.read_bytes())


@asynccontextmanager
async def _stalled_client(address: str) -> AsyncIterator[None]:
    async with grpc.aio.insecure_channel(address, _SMALL_WINDOW) as channel:
        method: Any = channel.unary_stream(_METHOD)
        call = method(_large_request())
        await asyncio.sleep(_STALLED_BEFORE_S)
        if call.done():
            raise TargetError(f"a client that never reads was refused: {await call.code()}")
        try:
            yield
        finally:
            call.cancel()


def _large_request() -> bytes:
    """Asks for more than a client takes that does not read."""
    request = stream_request(next(Synthetic("stalled", 1).requests()).prompt, _STALLED_TOKENS)
    request.parameters.n = _STALLED_SEQUENCES
    request.parameters.logprobs = _STALLED_LOGPROBS
    return request.SerializeToString()
