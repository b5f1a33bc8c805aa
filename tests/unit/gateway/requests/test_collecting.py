"""Collecting the deltas of a generation, whether it finishes or the deadline cuts it off."""

import asyncio

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Delta, Finish, FinishReason, PromptFacts, SequenceDelta
from neox_serve.gateway.requests.collecting import PromptCollector, StreamProgress
from neox_serve.gateway.requests.completing import side_by_side
from neox_serve.gateway.server.calls import TokenCount
from neox_serve.gateway.server.deadlines import PARTIAL_MARGIN_S, Deadline, Expired, Expiry
from neox_serve.v1 import generation_pb2

STOP = Finish(FinishReason.STOP)


def test_unfinished_completions_report_the_deadline() -> None:
    collector = PromptCollector(2)
    collector.take([Delta("k", (SequenceDelta(0, "a", (1,), finish=STOP), SequenceDelta(1, "b", (2,))), PromptFacts(3))])
    result = collector.message()
    reasons = [completion.finish.reason for completion in result.completions]
    assert reasons == [generation_pb2.FINISH_REASON_STOP, generation_pb2.FINISH_REASON_DEADLINE]
    assert [completion.text for completion in result.completions] == ["a", "b"]
    assert (result.usage.completion_tokens, result.usage.cached_tokens) == (2, 3)


def test_end_with_unfinished_completions_is_an_internal_error() -> None:
    progress = StreamProgress(2, TokenCount())
    with pytest.raises(ServeError) as caught:
        progress.take([Delta("k", (SequenceDelta(0, "", (), finish=STOP),), end=True)])
    assert caught.value.reason is Reason.INTERNAL


def test_failure_in_the_last_delta_is_raised() -> None:
    lost = ServeError(Reason.REPLICA_LOST, "gone")
    with pytest.raises(ServeError, match="gone"):
        StreamProgress(1, TokenCount()).take([Delta("k", end=True, failure=lost)])


@pytest.mark.parametrize(("allowed_s", "margin_s"), [(10.0, PARTIAL_MARGIN_S), (0.4, 0.1)])
async def test_partial_response_is_sent_a_margin_before_the_deadline(allowed_s: float, margin_s: float) -> None:
    task = asyncio.current_task()
    assert task is not None
    assert Deadline(100.0, 100.0 + allowed_s).partial_at_s == pytest.approx(100.0 + allowed_s - margin_s)


async def test_expiry_interrupts_a_wait_and_calls_back() -> None:
    expirations: list[bool] = []
    expiry = Expiry(asyncio.get_running_loop().time(), lambda: expirations.append(True))
    with pytest.raises(Expired):
        await expiry.wait(asyncio.Event().wait())
    assert expirations == [True]
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_expiry_interrupts_only_waits() -> None:
    expiry = Expiry(asyncio.get_running_loop().time(), lambda: None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert expiry.expired


async def test_cancelled_wait_raises_cancelled_error() -> None:
    async def wait() -> None:
        expiry = Expiry(asyncio.get_running_loop().time() + 60, lambda: None)
        try:
            await expiry.wait(asyncio.Event().wait())
        finally:
            expiry.close()

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_first_failure_cancels_the_others_and_is_raised_by_itself() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def fail() -> None:
        raise ServeError(Reason.OVERLOADED, "full")

    with pytest.raises(ServeError, match="full"):
        await side_by_side([forever(), fail(), forever()])
    assert ended == ["cancelled", "cancelled"]
