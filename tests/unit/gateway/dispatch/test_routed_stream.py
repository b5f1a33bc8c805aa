"""The life of a stream without a network: in any order of events, one terminal event and no lease left."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neox_serve.core.cluster import Lease, Settled
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.generation.continuation import MAX_CONTINUATIONS
from neox_serve.core.generation.request_life import replica_lost
from neox_serve.core.types import Delta, GenerationRequest, SequenceDelta, Stopping
from neox_serve.gateway.dispatch.engine_link import DeltaReceiver, EngineLink
from neox_serve.gateway.dispatch.placement import Placement
from neox_serve.gateway.dispatch.routed_stream import RoutedStream

REQUEST = GenerationRequest("r", (1,), Stopping(10))


class World:
    """The surroundings of one stream: the router that places it, the link that carries it, and the reader."""

    def __init__(self, refuse_after: int, taken: Iterable[bool] = ()) -> None:
        self.taken = iter(taken)
        self.refuse_after = refuse_after
        self.link_up = True
        self.placed: list[Lease] = []
        self.requests: list[GenerationRequest] = []
        self.settled: Counter[int] = Counter()
        self.receiver: DeltaReceiver | None = None
        self.aborted: list[int] = []
        self.ends = 0
        self.stream = RoutedStream(REQUEST, place=self.place, settle=self.settle, on_end=self.end, clock=lambda: 0.0)
        self.reading: asyncio.Task[None] | None = None
        self.errors: list[ServeError] = []
        self.texts: list[str] = []
        self.pushed: list[str] = []

    async def place(self, request: GenerationRequest, failed: tuple[str, ...]) -> Placement:
        self.requests.append(request)
        await asyncio.sleep(0)
        if len(self.placed) >= self.refuse_after:
            raise ServeError(Reason.NO_READY_REPLICA, "none")
        lease = Lease(len(self.placed), f"replica-{len(self.placed)}", 11)
        assert lease.replica_id not in failed
        self.placed.append(lease)
        return Placement(lease, cast("EngineLink", self), failed)

    def settle(self, settled: Settled) -> None:
        self.settled[settled.lease_id] += 1

    def end(self) -> None:
        self.ends += 1

    # The link's part

    def generate(self, key: int, _request: GenerationRequest, receiver: DeltaReceiver) -> None:
        if not self.link_up:
            raise replica_lost("gone")
        self.receiver = receiver

    def cancel(self, key: int) -> None:
        self.aborted.append(key)
        self.receiver = None

    def push(self, delta: Delta) -> None:
        receiver = self.receiver
        if delta.end:
            self.receiver = None
        if receiver is not None:
            receiver.push(delta)

    # The reader's part

    def take(self, delta: Delta) -> bool:
        """The reader's DirectSink; `taken` says which deltas it consumes."""
        assert not delta.end
        if not next(self.taken, False):
            return False
        self.texts += [sequence.text for sequence in delta.sequences if sequence.token_ids]
        return True

    async def read(self) -> None:
        try:
            while True:
                deltas: Sequence[Delta] = await self.stream.next(self.take)
                self.texts += [sequence.text for delta in deltas for sequence in delta.sequences if sequence.token_ids]
                if deltas[-1].end:
                    return
        except ServeError as error:
            self.errors.append(error)


def fail(reason: Reason) -> Delta:
    return Delta(0, end=True, failure=ServeError(reason, "failed"))


def act(world: World, action: str) -> None:
    match action:
        case "token":
            text = str(len(world.pushed))
            if world.receiver is not None:
                world.pushed.append(text)
            world.push(Delta(0, (SequenceDelta(0, text, (1,)),)))
        case "finish":
            world.push(Delta(0, end=True))
        case "lose":
            world.push(fail(Reason.REPLICA_LOST))
        case "drain":
            world.push(fail(Reason.DRAINING))
        case "break":
            world.push(fail(Reason.ENGINE_FAILED))
        case "link down":
            world.link_up = False
        case "cancel":
            world.stream.cancel()


ACTIONS = st.lists(st.sampled_from(["token", "finish", "lose", "drain", "break", "link down", "cancel", "wait"]), max_size=12)


@settings(max_examples=300, deadline=None)
@given(ACTIONS, st.integers(1, 3), st.lists(st.booleans()))
def test_stream_has_one_terminal_event_and_settles_each_lease_once(actions: list[str], refuse_after: int, taken: list[bool]) -> None:
    async def live() -> World:
        world = World(refuse_after, taken)
        await world.stream.open()
        reading = asyncio.ensure_future(world.read())
        for action in actions:
            act(world, action)
            if action == "wait":
                for _ in range(5):
                    await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        if not reading.done():
            world.stream.cancel()
        await asyncio.wait_for(reading, 5)
        return world

    world = asyncio.run(live())
    assert world.ends == 1
    assert world.settled == Counter(lease.lease_id for lease in world.placed)
    assert len(world.placed) <= 1 + MAX_CONTINUATIONS
    for request in world.requests:
        assert len(request.prompt_token_ids) + request.stopping.max_tokens == 1 + REQUEST.stopping.max_tokens, "a token more, or less"
    assert len(world.errors) <= 1
    assert world.texts == world.pushed[: len(world.texts)], "text out of order, or twice"
    if not world.errors:
        assert world.texts == world.pushed
    if world.texts and world.errors:
        assert world.errors[0].reason is not Reason.NO_READY_REPLICA, "a request with output was moved"


async def streaming(world: World) -> None:
    """Opens the stream and delivers its first delta, which is never offered directly."""
    await world.stream.open()
    act(world, "token")
    await world.stream.next(world.take)


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_reader_keeps_waiting_while_deltas_are_consumed_directly() -> None:
    world = World(1, taken=(True, True, False, True))
    await streaming(world)
    reading = asyncio.ensure_future(world.stream.next(world.take))
    await turns()
    for _ in range(2):
        act(world, "token")
        await turns()
    assert (world.texts, reading.done()) == (["1", "2"], False)
    for _ in range(2):
        act(world, "token")
    assert [delta.sequences[0].text for delta in await reading] == ["3", "4"], "the second waits behind the first"
    assert world.texts == ["1", "2"]


async def test_cancelled_reader_is_offered_nothing_and_the_next_call_returns_all_deltas() -> None:
    world = World(1, taken=(True,))
    await streaming(world)
    reading = asyncio.ensure_future(world.stream.next(world.take))
    await turns()
    reading.cancel()
    act(world, "token")
    await asyncio.wait((reading,))
    assert reading.cancelled()
    assert [delta.sequences[0].text for delta in await world.stream.next(world.take)] == ["1"]
    assert world.texts == []


async def test_exception_of_the_direct_sink_is_raised_only_to_the_reader() -> None:
    def broken(_delta: Delta) -> bool:
        raise LookupError("a bug")

    world = World(1)
    await streaming(world)
    reading = asyncio.ensure_future(world.stream.next(broken))
    await turns()
    for _ in range(2):
        act(world, "token")
    with pytest.raises(LookupError, match="a bug"):
        await reading
    world.stream.cancel()
    assert (world.ends, world.aborted, world.settled) == (1, [0], Counter([0]))
