"""Reading streams in tests: events, their times, and how the stream ended."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from neox_serve.client import AsyncClient
from neox_serve.client.results import StreamFinal
from neox_serve.client.retry import RetryPolicy
from neox_serve.core.errors import ServeError

NO_RETRY = RetryPolicy(max_attempts=1)


@dataclass
class StreamRecord:
    """The history of one stream. `times_s` has the monotonic time of each event."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    times_s: list[float] = field(default_factory=list)
    final: StreamFinal | None = None
    error: ServeError | None = None

    @property
    def longest_gap_s(self) -> float:
        """Returns the longest time between two events, in seconds."""
        return max((later - earlier for earlier, later in pairwise(self.times_s)), default=0.0)


async def read_stream(client: AsyncClient, prompt: str, *, max_tokens: int, record: StreamRecord | None = None) -> StreamRecord:
    """Reads a greedy stream of exactly max_tokens to its end or error. A given record is filled while events arrive."""
    record = record or StreamRecord()
    try:
        async for event in client.stream(prompt, max_tokens=max_tokens, ignore_eos=True, temperature=0.0, timeout_s=120):
            record.times_s.append(time.monotonic())
            if isinstance(event, StreamFinal):
                record.final = event
            else:
                record.token_ids.extend(event.token_ids)
                record.text += event.text
    except ServeError as error:
        record.error = error
    return record


async def load(client: AsyncClient, requests_per_s: float, max_tokens: int, stop: asyncio.Event) -> list[StreamRecord]:
    """Starts streams at this rate until it is stopped, and reads all to their end."""
    streams: list[asyncio.Task[StreamRecord]] = []
    while not stop.is_set():
        streams.append(asyncio.create_task(read_stream(client, f"def f{len(streams)}(", max_tokens=max_tokens)))
        await asyncio.sleep(1 / requests_per_s)
    return await asyncio.gather(*streams)


def assert_whole(records: Sequence[StreamRecord], max_tokens: int) -> None:
    """Checks that every stream ended without error and has every token once."""
    errors = [record.error for record in records if record.error]
    assert not errors, errors[:3]
    assert [len(record.token_ids) for record in records] == [max_tokens] * len(records)
    assert all(record.final and record.final.usage.completion_tokens == max_tokens for record in records)


async def until(condition: object, timeout_s: float, what: str, every_s: float = 0.05) -> None:
    """Waits until an async condition holds, or fails with its name."""
    deadline_s = time.monotonic() + timeout_s
    while not await condition():  # type: ignore[operator]
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(every_s)
