"""The calls in flight: the limit, draining, and waiting for idleness."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.gateway.server.calls import Call, CallIdentity
from neox_serve.gateway.server.deadlines import Deadline
from neox_serve.gateway.server.in_flight import CallsInFlight


@pytest.fixture
async def task() -> AsyncIterator["asyncio.Task[bool]"]:
    task = asyncio.ensure_future(asyncio.Event().wait())
    yield task
    task.cancel()


def call(task: "asyncio.Task[bool]") -> Call:
    return Call(CallIdentity("/m", "id"), Deadline(0.0, 60.0), task)


async def test_calls_above_the_limit_are_refused_until_one_leaves(task: "asyncio.Task[bool]") -> None:
    in_flight, first, second = CallsInFlight(1), call(task), call(task)
    in_flight.enter(first)
    with pytest.raises(ServeError) as caught:
        in_flight.enter(second)
    assert caught.value.reason is Reason.OVERLOADED
    assert caught.value.metadata == {"max_concurrent_requests": "1"}
    in_flight.leave(second)
    assert list(in_flight) == [first], "a call that was refused takes no place"
    in_flight.leave(first)
    in_flight.enter(second)
    assert len(in_flight) == 1


async def test_calls_are_refused_while_draining(task: "asyncio.Task[bool]") -> None:
    in_flight = CallsInFlight(1)
    in_flight.draining = True
    with pytest.raises(ServeError) as caught:
        in_flight.enter(call(task))
    assert caught.value.reason is Reason.DRAINING
    assert caught.value.retry_after_s


async def test_idle_returns_when_the_last_call_leaves(task: "asyncio.Task[bool]") -> None:
    in_flight, calls = CallsInFlight(2), [call(task), call(task)]
    await in_flight.idle()
    for one in calls:
        in_flight.enter(one)
    idle = asyncio.ensure_future(in_flight.idle())
    in_flight.leave(calls[0])
    await asyncio.sleep(0)
    assert not idle.done()
    in_flight.leave(calls[1])
    await idle
