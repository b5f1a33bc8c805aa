"""The target of the load generator on the ladder, which reads timestamps from tokens, and a client that never reads."""

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

# The smallest HTTP/2 window of a client, without dynamic growth.
_SMALL_WINDOW = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
_STALLED_TOKENS = 1_900
_STALLED_SEQUENCES = 8
_STALLED_LOGPROBS = 10
"""Length, number and log-probabilities of the stalled client's sequences: about 90 kB/s, which fills the window almost at once."""
_STALLED_BEFORE_S = 0.5


class StampedTarget:
    """Computes the lags of the tokens that it decodes. The first `ramp_tokens` of each response are ignored."""

    def __init__(self, target: Target, ramp_tokens: int = 0) -> None:
        self._target = target
        self._ramp_tokens = ramp_tokens
        self.lags_s = array("d")

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """Sends a request to the wrapped target."""
        await self._target.send(prompt, output_tokens, stamp)

    def decode(self, stamped: Sequence[tuple[float, bytes]]) -> Response:
        """Decodes a response with the wrapped target and records its lags. Raises ValueError if a token has no timestamp."""
        answer, lags_s = self._target.decode(stamped), list[float]()
        for arrival, (_, message) in zip(answer.arrivals, stamped, strict=True):
            lags_s += lags(arrival.at_s, StreamGenerateResponse.FromString(message).chunk.text, len(arrival.token_ids))
        self.lags_s.extend(lags_s[self._ramp_tokens :])
        return answer


@dataclass(frozen=True, slots=True)
class StampedSpec:
    """Specification of a StampedTarget."""

    gateway: GatewaySpec
    """The gateway."""
    lags_file: Path
    """File to which all lags are written when the load generator disconnects."""
    ramp_tokens: int = 0
    """Number of ignored first tokens of each response."""
    stalled: bool = False
    """Whether an additional client opens a stream and never reads from it."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Target]:
        """Connects to the gateway. The window of the stalled client is full by then. Raises TargetError if its call is refused."""
        async with self.gateway.connect() as target:
            stamped = StampedTarget(target, self.ramp_tokens)
            if self.stalled:
                async with _stalled_client(self.gateway.address):
                    yield stamped
            else:
                yield stamped
        self.lags_file.write_bytes(stamped.lags_s.tobytes())

    def lags_s(self) -> "array[float]":
        """Returns the lag of every token after the ramp. The load generator must have disconnected."""
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
    """Returns a request whose response is larger than the window of a client that does not read."""
    request = stream_request(next(Synthetic("stalled", 1).requests()).prompt, _STALLED_TOKENS)
    request.parameters.n = _STALLED_SEQUENCES
    request.parameters.logprobs = _STALLED_LOGPROBS
    return request.SerializeToString()
