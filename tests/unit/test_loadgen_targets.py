"""What the load generator's targets ask, and how they read what came; and the closed loop over a target of the test's."""

import json
from collections.abc import Sequence
from typing import Any

from neox_serve.loadgen.records import Arrival, TokenIds
from neox_serve.loadgen.runner import ClosedLoop
from neox_serve.loadgen.targets import Stamp
from neox_serve.loadgen.targets.grpc_gateway import GatewayTarget, stream_request
from neox_serve.loadgen.targets.openai_server import OpenAiTarget
from neox_serve.loadgen.workloads import Workload
from neox_serve.v1 import inference_service_pb2 as pb


def event(*token_ids: int) -> bytes:
    """An event of the OpenAI server."""
    return b"data: " + json.dumps({"choices": [{"text": "x", "token_ids": token_ids}]}).encode() + b"\n\n"


def openai_target() -> OpenAiTarget:
    """One without a session, for decoding."""
    return OpenAiTarget(None, "model")  # type: ignore[arg-type]


def test_openai_events_in_one_part_are_arrivals_at_one_time() -> None:
    assert openai_target().decode([(1.0, event(5) + event(6, 7))]) == [Arrival(1.0, (5,)), Arrival(1.0, (6, 7))]


def test_openai_event_in_two_parts_arrives_with_the_second() -> None:
    whole = event(5)
    assert openai_target().decode([(1.0, whole[:20]), (2.0, whole[20:] + b"data: [DONE]\n\n")]) == [Arrival(2.0, (5,)), Arrival(2.0, ())]


def test_gateway_messages_are_arrivals_and_the_final_one_has_no_tokens() -> None:
    chunk = pb.StreamGenerateResponse(chunk=pb.StreamChunk(text="x", token_ids=[5, 6])).SerializeToString()
    final = pb.StreamGenerateResponse(final=pb.StreamFinal(request_id="r")).SerializeToString()
    assert GatewayTarget([]).decode([(1.0, chunk), (2.0, final)]) == [Arrival(1.0, (5, 6)), Arrival(2.0, ())]


def test_gateway_request_is_greedy_and_of_fixed_length() -> None:
    request = stream_request((1, 2, 3), 7)
    assert list(request.prompt.token_ids.ids) == [1, 2, 3]
    assert request.parameters.sampling.HasField("temperature")
    assert request.parameters.sampling.temperature == 0.0
    assert (request.parameters.stopping.max_tokens, request.parameters.stopping.ignore_eos) == (7, True)


class EchoTarget:
    """Answers with the prompt, one token a payload; fails or garbles where told."""

    def __init__(self, fails_at: int = -1, garbles_at: int = -1) -> None:
        self.in_flight = self.most_in_flight = self.sent = 0
        self._fails_at, self._garbles_at = fails_at, garbles_at

    async def send(self, prompt: TokenIds, output_tokens: int, stamp: Stamp) -> None:
        """Stamps the first tokens of the prompt."""
        number, self.sent = self.sent, self.sent + 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        for token_id in prompt[:output_tokens]:
            stamp("garbled" if number == self._garbles_at else token_id)
        self.in_flight -= 1
        if number == self._fails_at:
            raise ConnectionError("gone")

    def decode(self, stamped: Sequence[tuple[float, Any]]) -> list[Arrival]:
        """Raises ValueError where garbled."""
        return [Arrival(at_s, (int(payload),)) for at_s, payload in stamped]


WORKLOAD = Workload("w", streams=2, requests=5, prompt_tokens=4, output_tokens=3, vocabulary_size=100)


async def test_closed_loop_records_come_in_the_order_of_the_prompts() -> None:
    target, ended = EchoTarget(), list[int]()
    loop = ClosedLoop(WORKLOAD, target, ended.append)
    await loop.run()
    assert [one.token_ids for one in loop.records()] == [prompt[:3] for prompt in WORKLOAD.prompts()]
    assert ended == [1, 2, 3, 4, 5]


async def test_closed_loop_next_request_is_meant_to_start_when_the_one_before_ends() -> None:
    one_stream = Workload("w", streams=1, requests=3, prompt_tokens=4, output_tokens=3, vocabulary_size=100)
    loop = ClosedLoop(one_stream, EchoTarget(), lambda _: None)
    await loop.run()
    first, second, third = loop.records()
    assert (second.intended_s, third.intended_s) == (first.end_s, second.end_s)


async def test_closed_loop_failed_request_is_a_record_with_its_error() -> None:
    loop = ClosedLoop(WORKLOAD, EchoTarget(fails_at=1), lambda _: None)
    await loop.run()
    assert [one.error for one in loop.records()] == [None, "ConnectionError: gone", None, None, None]


async def test_closed_loop_undecodable_response_is_a_record_with_an_error() -> None:
    loop = ClosedLoop(WORKLOAD, EchoTarget(garbles_at=2), lambda _: None)
    await loop.run()
    errors = [one.error for one in loop.records()]
    assert [error is None for error in errors] == [True, True, False, True, True]
