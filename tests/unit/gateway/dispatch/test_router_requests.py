"""Requests over the router link: whatever happens to the router, each call ends once and nothing is left pending."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neox_serve.core.errors import Reason, ServeError
from neox_serve.gateway.dispatch.router_requests import NoReplyError, RouterRequests
from neox_serve.internal.v1 import router_link_pb2 as pb

LONG_S = 60.0


class Router:
    """The other end of the link: what was sent to it, and whether it is there."""

    def __init__(self, *, connected: bool = True) -> None:
        self.connected = connected
        self.sent: list[int] = []

    def send(self, message: pb.ConnectGatewayRequest) -> None:
        if self.connected:
            self.sent.append(message.view.view_id)

    def requests(self, **options: Any) -> RouterRequests[str]:
        return RouterRequests[str](send=self.send, connected=lambda: self.connected, **options)

    def lose(self, requests: RouterRequests[str]) -> None:
        self.connected = False
        requests.on_router_lost()

    def return_(self, requests: RouterRequests[str]) -> None:
        self.connected = True
        requests.on_router_connected()


def view(number: int) -> pb.ConnectGatewayRequest:
    return pb.ConnectGatewayRequest(view=pb.ViewRequest(view_id=number))


def start(requests: RouterRequests[str], timeout_s: float = LONG_S, accepted: list[str] | None = None) -> tuple[int, asyncio.Task[str]]:
    """A call in a task, under a new id."""
    number = requests.next_id()
    on_reply = accepted.append if accepted is not None else None
    return number, asyncio.ensure_future(requests.call(number, view(number), timeout_s=timeout_s, on_reply=on_reply))


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def no_reply(call: asyncio.Task[str]) -> NoReplyError:
    with pytest.raises(NoReplyError) as caught:
        await asyncio.wait_for(call, 1)
    return caught.value


async def test_call_with_a_reply_returns_it_and_leaves_nothing_pending() -> None:
    router = Router()
    requests = router.requests()
    (first, one), (second, two) = start(requests), start(requests)
    await turn()
    assert (router.sent, requests.pending) == ([first, second], 2)
    assert requests.on_reply(second, "b")
    assert requests.on_reply(first, "a")
    assert (await one, await two, requests.pending) == ("a", "b", 0)


async def test_on_reply_runs_before_the_waiting_call_resumes() -> None:
    requests, accepted = Router().requests(), list[str]()
    number, call = start(requests, accepted=accepted)
    await turn()
    requests.on_reply(number, "a")
    assert accepted == ["a"]
    assert await call == "a"


async def test_call_without_a_reply_ends_at_its_timeout() -> None:
    requests = Router().requests()
    _, call = start(requests, timeout_s=0.01)
    assert not (await no_reply(call)).queued
    assert requests.pending == 0


async def test_router_lost_while_a_call_waits_ends_it_at_once() -> None:
    router = Router()
    requests = router.requests()
    _, call = start(requests)
    await turn()
    router.lose(requests)
    assert not (await no_reply(call)).queued
    assert requests.pending == 0


async def test_call_without_a_router_fails_at_once_and_sends_nothing() -> None:
    router = Router(connected=False)
    requests = router.requests()
    _, call = start(requests)
    await no_reply(call)
    assert (router.sent, requests.pending) == ([], 0)


async def test_queued_call_waits_beyond_its_timeout_for_the_final_reply() -> None:
    requests = Router().requests()
    number, call = start(requests, timeout_s=0.01)
    await turn()
    assert requests.on_queued(number)
    await asyncio.sleep(0.05)
    assert not call.done()
    requests.on_reply(number, "a")
    assert await call == "a"


async def test_queued_call_whose_router_is_lost_says_that_it_was_queued() -> None:
    router = Router()
    requests = router.requests()
    number, call = start(requests, timeout_s=0.01)
    await turn()
    requests.on_queued(number)
    await asyncio.sleep(0.03)
    router.lose(requests)
    assert (await no_reply(call)).queued


async def test_resent_call_survives_lost_routers_and_gets_the_reply_of_the_next() -> None:
    router = Router()
    requests = router.requests(resend=True)
    number, call = start(requests)
    await turn()
    for _ in range(2):
        router.lose(requests)
        await turn()
        assert not call.done()
        router.return_(requests)
    assert router.sent == [number] * 3
    requests.on_reply(number, "a")
    assert await call == "a"


async def test_resent_call_begun_without_a_router_is_sent_once_there_is_one() -> None:
    router = Router(connected=False)
    requests = router.requests(resend=True)
    number, call = start(requests)
    await turn()
    assert router.sent == []
    router.return_(requests)
    assert router.sent == [number]
    requests.on_reply(number, "a")
    assert await call == "a"


async def test_resent_call_without_any_router_ends_at_its_timeout() -> None:
    requests = Router(connected=False).requests(resend=True)
    _, call = start(requests, timeout_s=0.01)
    await no_reply(call)
    assert requests.pending == 0


@pytest.mark.parametrize("end", ["replied", "timed out", "cancelled", "never begun"])
async def test_late_or_second_reply_finds_no_call(end: str) -> None:
    requests, accepted = Router().requests(), list[str]()
    number, call = start(requests, timeout_s=0.01 if end == "timed out" else LONG_S, accepted=accepted)
    await turn()
    if end == "replied":
        requests.on_reply(number, "first")
    elif end == "cancelled":
        call.cancel()
    await asyncio.sleep(0.03 if end == "timed out" else 0)
    assert not requests.on_reply(number + (end == "never begun"), "late")
    assert accepted == (["first"] if end == "replied" else [])
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def test_cancelled_call_is_forgotten_and_not_resent() -> None:
    router = Router()
    requests = router.requests(resend=True)
    number, call = start(requests)
    await turn()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    router.lose(requests)
    router.return_(requests)
    assert (router.sent, requests.pending) == ([number], 0)


async def test_calls_beyond_the_bound_are_refused() -> None:
    requests = Router().requests(max_pending=2)
    calls = [start(requests)[1] for _ in range(3)]
    await turn()
    with pytest.raises(ServeError) as caught:
        await calls[2]
    assert caught.value.reason is Reason.OVERLOADED
    assert requests.pending == 2
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert requests.pending == 0


STEPS = st.lists(
    st.tuples(st.sampled_from(["call", "reply", "queue", "cancel", "lose", "return", "turn"]), st.integers(0, 5)),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(resend=st.booleans(), steps=STEPS)
def test_whatever_happens_each_call_ends_and_nothing_is_left_pending(resend: bool, steps: Sequence[tuple[str, int]]) -> None:
    asyncio.run(play(resend=resend, steps=steps))


async def play(*, resend: bool, steps: Sequence[tuple[str, int]]) -> None:
    router, accepted = Router(), list[str]()
    requests = router.requests(resend=resend)
    calls: dict[int, asyncio.Task[str]] = {}
    for step, at in steps:
        number = at + 1
        if step == "call":
            number, call = start(requests, accepted=accepted)
            calls[number] = call
        elif step == "reply" and router.connected:
            requests.on_reply(number, str(number))
        elif step == "queue" and router.connected:
            requests.on_queued(number)
        elif step == "cancel" and number in calls:
            calls[number].cancel()
        elif step == "lose":
            router.lose(requests)
        elif step == "return" and not router.connected:
            router.return_(requests)
        elif step == "turn":
            await turn()
    await turn()
    if not router.connected:
        router.return_(requests)
    for number in calls:
        requests.on_reply(number, str(number))
    results = await asyncio.wait_for(asyncio.gather(*calls.values(), return_exceptions=True), 5)
    assert requests.pending == 0
    for number, result in zip(calls, results, strict=True):
        assert result == str(number) or isinstance(result, NoReplyError | asyncio.CancelledError)
        assert not (resend and isinstance(result, NoReplyError))
    assert len(accepted) == len(set(accepted))
