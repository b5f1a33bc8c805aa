"""The fake engine's timing and failures, in virtual time. The requirements on all engines are tested in tests/contract."""

import asyncio
from collections.abc import Sequence

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Delta, EmbeddingRequest, GenerationRequest, Pooling, Stopping
from neox_serve.engine.fake.engine import FakeEngine, FakeTiming, Fault
from tests.fakes.virtual_clock import VirtualClock


def request(name: str, tokens: int) -> GenerationRequest:
    return GenerationRequest(name, (1, 2, 3), Stopping(max_tokens=tokens))


class Recorder:
    """A sink that records the time of each call."""

    def __init__(self, time: VirtualClock) -> None:
        self.time = time
        self.calls: list[tuple[float, Sequence[Delta]]] = []
        self.done = asyncio.Event()

    def __call__(self, deltas: Sequence[Delta]) -> None:
        self.calls.append((round(self.time.time_s, 6), deltas))
        if any(delta.end for delta in deltas):
            self.done.set()

    async def end(self) -> None:
        async with asyncio.timeout(5):
            await self.done.wait()
        self.done.clear()


async def test_steps_of_one_request_follow_ttft_and_itl() -> None:
    time = VirtualClock()
    engine, sink = FakeEngine(FakeTiming(ttft_s=0.5, itl_s=0.1), clock=time.clock), Recorder(time)
    await engine.generate("a", request("a", 4), sink)
    await sink.end()
    assert [at for at, _ in sink.calls] == [0.5, 0.6, 0.7, 0.8]
    await engine.close()


async def test_steps_of_a_batch_take_longer_and_deliver_all_tokens_in_one_call() -> None:
    time = VirtualClock()
    engine = FakeEngine(FakeTiming(ttft_s=0.5, itl_s=0.1, itl_per_request_s=0.05), clock=time.clock)
    sink = Recorder(time)
    for name in "abc":
        await engine.generate(name, request(name, 3), sink)
    await sink.end()
    assert [(at, len(deltas)) for at, deltas in sink.calls] == [(0.5, 3), (0.7, 3), (0.9, 3)]
    assert engine.stats().output_tokens_total == 9
    await engine.close()


async def test_late_step_does_not_delay_later_steps() -> None:
    time = VirtualClock()
    engine, sink = FakeEngine(FakeTiming(ttft_s=0.5, itl_s=0.1), clock=time.clock), Recorder(time)

    def slow_once(deltas: Sequence[Delta]) -> None:
        sink(deltas)
        if len(sink.calls) == 1:
            time.time_s += 0.25

    await engine.generate("a", request("a", 5), slow_once)
    await sink.end()
    assert [at for at, _ in sink.calls] == [0.5, 0.75, 0.75, 0.8, 0.9]
    await engine.close()


async def test_requests_beyond_max_num_seqs_wait() -> None:
    time = VirtualClock()
    engine, sink = FakeEngine(FakeTiming(ttft_s=0.1, itl_s=0.1), max_num_seqs=1, clock=time.clock), Recorder(time)
    for name in "ab":
        await engine.generate(name, request(name, 2), sink)
    await sink.end()
    assert engine.stats().waiting_requests == 1
    await sink.end()
    assert [[delta.key for delta in deltas] for _, deltas in sink.calls] == [["a"], ["a"], ["b"], ["b"]]
    await engine.close()


async def test_injected_rejection_is_raised_at_admission() -> None:
    refusal = ServeError(Reason.OVERLOADED, "full", retry_after_s=1.0)
    engine = FakeEngine(faults=lambda asked: Fault(refusal) if asked.request_id == "bad" else None, clock=VirtualClock().clock)
    with pytest.raises(ServeError) as raised:
        await engine.generate("a", request("bad", 2), lambda _: None)
    assert raised.value is refusal
    assert engine.stats().waiting_requests == 0
    await engine.close()


async def test_injected_failure_ends_only_its_request_after_its_tokens() -> None:
    failure = ServeError(Reason.ENGINE_FAILED, "broken")
    time = VirtualClock()
    engine = FakeEngine(faults=lambda asked: Fault(failure, after_tokens=2) if asked.request_id == "bad" else None, clock=time.clock)
    sink = Recorder(time)
    await engine.generate("bad", request("bad", 5), sink)
    await engine.generate("good", request("good", 5), sink)
    await sink.end()
    await sink.end()
    ends = {delta.key: delta.failure for _, deltas in sink.calls for delta in deltas if delta.end}
    tokens = [delta.key for _, deltas in sink.calls for delta in deltas if delta.sequences]
    assert ends == {"bad": failure, "good": None}
    assert (tokens.count("bad"), tokens.count("good")) == (2, 5)
    await engine.close()


async def test_die_ends_all_requests_with_replica_lost_and_rejects_new_ones() -> None:
    time = VirtualClock()
    engine, sink = FakeEngine(clock=time.clock), Recorder(time)
    await engine.generate("a", request("a", 1000), sink)
    embedding = asyncio.create_task(FakeEngine.embed(engine, "e", EmbeddingRequest("e", (1,), Pooling.MEAN)))
    engine.die()
    await sink.end()
    assert [delta.failure.reason for _, deltas in sink.calls for delta in deltas if delta.failure] == [Reason.REPLICA_LOST]
    for refused in (engine.generate("b", request("b", 1), sink), engine.check_health(), embedding):
        with pytest.raises(ServeError) as raised:
            await refused
        assert raised.value.reason is Reason.REPLICA_LOST
    await engine.close()


async def test_failing_sink_does_not_affect_other_sinks() -> None:
    time = VirtualClock()
    engine, sink = FakeEngine(clock=time.clock), Recorder(time)
    reported: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def broken(_: Sequence[Delta]) -> None:
        raise RuntimeError("broken sink")

    await engine.generate("a", request("a", 2), broken)
    await engine.generate("b", request("b", 2), sink)
    await sink.end()
    loop.set_exception_handler(None)
    assert [str(error) for error in reported] == ["broken sink"] * 2
    await engine.close()


async def test_timestamp_text_is_the_time_of_the_step_even_if_late() -> None:
    time = VirtualClock()
    engine, sink = FakeEngine(FakeTiming(ttft_s=0.5, itl_s=0.1), clock=time.clock, timestamp_text=True), Recorder(time)

    def slow_once(deltas: Sequence[Delta]) -> None:
        sink(deltas)
        if len(sink.calls) == 1:
            time.time_s += 0.25

    await engine.generate("a", GenerationRequest("a", (1, 2, 3), Stopping(max_tokens=3), n=2), slow_once)
    await sink.end()
    texts = [[sequence.text for sequence in delta.sequences] for _, deltas in sink.calls for delta in deltas]
    assert texts == [["0.500000 "] * 2, ["0.750000 "] * 2, ["0.750000 "] * 2]
    await engine.close()


async def test_timestamp_text_does_not_change_the_tokens() -> None:
    outputs = []
    for timestamp_text in (False, True):
        time = VirtualClock()
        engine, sink = FakeEngine(clock=time.clock, timestamp_text=timestamp_text), Recorder(time)
        await engine.generate("a", request("a", 4), sink)
        await sink.end()
        outputs.append([sequence.token_ids for _, deltas in sink.calls for delta in deltas for sequence in delta.sequences])
        await engine.close()
    assert outputs[0] == outputs[1]
