"""Closed and open loops with a fake target: order, limits, failures, interrupts. All start times are equal here."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from neox_serve.loadgen.arrivals import Arrivals, ClosedLoop, Replay
from neox_serve.loadgen.load import Load
from neox_serve.loadgen.records import Arrival, Response
from neox_serve.loadgen.runner import Runner
from neox_serve.loadgen.targets import Stamp, TargetError
from neox_serve.loadgen.workloads import Prompt, Request, Synthetic

WORKLOAD = Synthetic("w", 5, prompt_tokens=4, output_tokens=3, vocabulary_size=100)


@dataclass(frozen=True, slots=True)
class AtOnce:
    """Requests that all have the same recorded time."""

    prompts: tuple[Prompt, ...]
    name: str = "at once"

    def requests(self) -> Iterator[Request]:
        """See the protocol."""
        return (Request(prompt, 1, recorded_s=5.0) for prompt in self.prompts)


class EchoTarget:
    """Responds with the prompt, one token per payload; can fail or send garbage.

    hangs_from: number of the first request that never ends.
    """

    def __init__(self, failure: Exception | None = None, garbles_at: int = -1, hangs_from: int = 1_000) -> None:
        self.in_flight = self.max_in_flight = self.sent = 0
        self._failure, self._garbles_at, self._hangs_from = failure, garbles_at, hangs_from

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """Stamps the first tokens of the prompt. The second request fails."""
        number, self.sent = self.sent, self.sent + 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        for token_id in prompt[:output_tokens]:
            stamp("garbled" if number == self._garbles_at else token_id)
        if number >= self._hangs_from:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        self.in_flight -= 1
        if number == 1 and self._failure is not None:
            raise self._failure

    def decode(self, stamped: Sequence[tuple[float, Any]]) -> Response:
        """Raises ValueError for garbage."""
        return Response([Arrival(at_s, (int(payload),)) for at_s, payload in stamped], prompt_tokens=77)


def runner(target: EchoTarget, arrivals: Arrivals = ClosedLoop(2), **options: Any) -> Runner:  # noqa: B008 - a frozen value
    return Runner(Load(options.pop("workload", WORKLOAD), arrivals, **options), target, lambda _: None)


async def test_closed_loop_records_come_in_the_order_of_the_prompts() -> None:
    target, ended = EchoTarget(), list[int]()
    run = Runner(Load(WORKLOAD, ClosedLoop(2)), target, ended.append)
    await run.run()
    records = run.outcome().records
    assert [one.token_ids for one in records] == [tuple(request.prompt[:3]) for request in WORKLOAD.requests()]
    assert [one.prompt_tokens for one in records] == [4] * 5
    assert ended == [1, 2, 3, 4, 5]
    assert target.max_in_flight == 2


async def test_closed_loop_next_request_is_meant_to_start_when_the_one_before_ends() -> None:
    run = runner(EchoTarget(), ClosedLoop(1))
    await run.run()
    first, second, third, *_ = run.outcome().records
    assert (second.intended_s, third.intended_s) == (first.end_s, second.end_s)


@pytest.mark.parametrize(
    ("failure", "told"), [(ConnectionError("gone"), "ConnectionError: gone"), (TargetError("HTTP 400: no"), "HTTP 400: no")]
)
async def test_failed_request_has_a_record_with_its_error(failure: Exception, told: str) -> None:
    run = runner(EchoTarget(failure))
    await run.run()
    assert [one.error for one in run.outcome().records] == [None, told, None, None, None]


async def test_undecodable_response_has_a_record_with_an_error() -> None:
    run = runner(EchoTarget(garbles_at=2))
    await run.run()
    assert [one.error is None for one in run.outcome().records] == [True, True, False, True, True]


async def test_text_prompt_has_the_length_that_the_system_counted() -> None:
    run = runner(EchoTarget(), Replay(), workload=AtOnce(("1", "2")))
    await run.run()
    assert [one.prompt_tokens for one in run.outcome().records] == [77, 77]


async def test_open_loop_sends_without_waiting_for_responses() -> None:
    target = EchoTarget()
    run = runner(target, Replay(), workload=AtOnce(((1,), (2,), (3,))))
    await run.run()
    records = run.outcome().records
    assert target.max_in_flight == 3
    assert len({one.intended_s for one in records}) == 1
    assert [one.token_ids for one in records] == [(1,), (2,), (3,)]


async def test_open_loop_with_a_limit_sends_late_and_records_it() -> None:
    target = EchoTarget()
    run = runner(target, Replay(), workload=AtOnce(((1,), (2,), (3,))), max_in_flight=1)
    await run.run()
    first, second, third = run.outcome().records
    assert target.max_in_flight == 1
    assert (second.late_s >= first.e2e_s, third.late_s >= second.e2e_s) == (True, True)


async def test_interrupt_cancels_what_is_in_flight_and_keeps_what_has_ended() -> None:
    run = Runner(
        Load(Synthetic("endless", None), ClosedLoop(2), duration_s=1e9),
        EchoTarget(hangs_from=4),
        lambda ended: run.interrupt() if ended == 4 else None,
    )
    await run.run()
    outcome = run.outcome()
    assert (len(outcome.records), outcome.unfinished) == (4, 2)
    assert all(one.error is None for one in outcome.records)


async def test_replay_of_a_recording_without_times_raises() -> None:
    with pytest.raises(ValueError, match="cannot be replayed"):
        await runner(EchoTarget(), Replay()).run()
