"""vLLM's gRPC server (smg-grpc-servicer), called with plain grpc.aio. It streams token ids without text."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc

from neox_serve.loadgen.records import Arrival, Response
from neox_serve.loadgen.targets import Stamp, Target
from neox_serve.loadgen.workloads import Prompt

_METHOD = "/vllm.grpc.engine.VllmEngine/Generate"


@dataclass(frozen=True, slots=True)
class VllmGrpcSpec:
    """Specification of a VllmGrpcTarget."""

    address: str
    """Address as host:port."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Target]:
        """Opens the connection in advance, so that no request includes its time."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(self.address, options) as channel:
            await channel.channel_ready()
            yield VllmGrpcTarget(channel.unary_stream(_METHOD))


class VllmGrpcTarget:
    """Streams from Generate."""

    def __init__(self, method: Any) -> None:
        self._method = method
        self._ids = count()

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """Makes one Generate call. Raises AioRpcError if it fails."""
        assert not isinstance(prompt, str)
        call = self._method(generate_request(f"bench-{next(self._ids)}", prompt, output_tokens).SerializeToString())
        while (message := await call.read()) is not grpc.aio.EOF:
            stamp(message)

    def decode(self, stamped: Sequence[tuple[float, bytes]]) -> Response:
        """Returns one arrival for each chunk. The last message, which repeats all tokens, contributes none."""
        from smg_grpc_proto import vllm_engine_pb2

        parse = vllm_engine_pb2.GenerateResponse.FromString
        return Response([Arrival(at_s, tuple(parse(message).chunk.token_ids)) for at_s, message in stamped])


def generate_request(request_id: str, prompt: Sequence[int], output_tokens: int) -> Any:
    """Returns a request for exactly `output_tokens` greedy tokens."""
    from smg_grpc_proto import vllm_engine_pb2

    return vllm_engine_pb2.GenerateRequest(
        request_id=request_id,
        tokenized=vllm_engine_pb2.TokenizedInput(input_ids=prompt),
        sampling_params=vllm_engine_pb2.SamplingParams(
            temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_tokens=output_tokens, ignore_eos=True, n=1
        ),
        stream=True,
    )
