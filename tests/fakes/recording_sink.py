"""A sink that records deltas, for calling engines directly."""

import asyncio
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from neox_serve.core.types import Delta, GenerationRequest, SequenceDelta, Stopping
from neox_serve.engine.protocol import Engine

ANSWER_TIMEOUT_S = 60.0


class RecordingSink:
    """Records all deltas, and wakes tasks that wait for an end or for a number of deltas."""

    def __init__(self) -> None:
        self.calls: list[tuple[Delta, ...]] = []
        self._changed = asyncio.Event()

    def __call__(self, deltas: Sequence[Delta]) -> None:
        self.calls.append(tuple(deltas))
        self._changed.set()

    def of(self, key: Hashable) -> list[Delta]:
        """Returns all deltas of one request."""
        return [delta for delta in itertools.chain.from_iterable(self.calls) if delta.key == key]

    async def until(self, key: Hashable, deltas: int | None = None) -> list[Delta]:
        """Waits for the end of a request, or for a number of its deltas."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while True:
                found = self.of(key)
                if (found and found[-1].end) if deltas is None else len(found) >= deltas:
                    return found
                self._changed.clear()
                await self._changed.wait()


@dataclass(frozen=True)
class Answer:
    """The deltas of one request."""

    deltas: tuple[Delta, ...]

    def parts(self, index: int = 0) -> list[SequenceDelta]:
        """Returns the deltas of one sequence."""
        return [part for delta in self.deltas for part in delta.sequences if part.index == index]

    def text(self, index: int = 0) -> str:
        """Returns the text of one sequence."""
        return "".join(part.text for part in self.parts(index))

    def token_ids(self, index: int = 0) -> tuple[int, ...]:
        """Returns the token ids of one sequence."""
        return tuple(token_id for part in self.parts(index) for token_id in part.token_ids)


async def ask(engine: Engine, request: GenerationRequest, key: Hashable = "key") -> Answer:
    """Returns the complete output of one request. Raises the engine's error if the request fails."""
    sink = RecordingSink()
    await engine.generate(key, request, sink)
    deltas = await sink.until(key)
    if deltas[-1].failure is not None:
        raise deltas[-1].failure
    return Answer(tuple(deltas))


def stopping(request: GenerationRequest, **changes: object) -> GenerationRequest:
    """Returns the same request with other stopping rules."""
    changed: Stopping = replace(request.stopping, **changes)  # type: ignore[arg-type]
    return replace(request, stopping=changed)
