"""Deadlines of calls: the margin of partial responses, enforcement, and the expiry that interrupts waits."""

import asyncio

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.gateway.server.deadlines import PARTIAL_MARGIN_S, Deadline, Expired, Expiry


@pytest.mark.parametrize(("allowed_s", "margin_s"), [(10.0, PARTIAL_MARGIN_S), (0.4, 0.1)])
def test_partial_response_is_sent_a_margin_before_the_deadline(allowed_s: float, margin_s: float) -> None:
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


async def test_enforced_deadline_cancels_the_block_and_raises_deadline_exceeded() -> None:
    now_s = asyncio.get_running_loop().time()
    with pytest.raises(ServeError) as caught:
        async with Deadline(now_s - 1.0, now_s).enforced():
            await asyncio.Event().wait()
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED
    assert "1.000 s" in caught.value.message


async def test_enforced_deadline_passes_on_a_timeout_of_the_block_itself() -> None:
    now_s = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        async with Deadline(now_s, now_s + 60.0).enforced():
            raise TimeoutError
