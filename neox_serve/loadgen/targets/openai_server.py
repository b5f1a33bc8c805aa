"""vLLM's OpenAI server, over HTTP streaming by aiohttp, whose parser is in C. Bodies stay bytes until the run is over."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from neox_serve.loadgen.records import Arrival, TokenIds
from neox_serve.loadgen.targets import Stamp, Target

_EVENT_END = b"\n\n"
_DATA = b"data: "
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class OpenAiSpec:
    """url: of the server, without a path."""

    url: str
    model: str

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Target]:
        """A session with as many connections as there are streams, each kept open between requests."""
        timeout = aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(self.url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            yield OpenAiTarget(session, self.model)


class OpenAiTarget:
    """Streams of /v1/completions."""

    def __init__(self, session: aiohttp.ClientSession, model: str) -> None:
        self._session = session
        self._model = model

    async def send(self, prompt: TokenIds, output_tokens: int, stamp: Stamp) -> None:
        """One completion. Raises aiohttp.ClientError, also where the server's answer is an error."""
        async with self._session.post("/v1/completions", json=completion_request(self._model, prompt, output_tokens)) as response:
            if response.status != 200:
                raise aiohttp.ClientPayloadError(f"HTTP {response.status}: {(await response.text())[:300]}")
            async for part in response.content.iter_any():
                stamp(part)

    def decode(self, stamped: Sequence[tuple[float, bytes]]) -> list[Arrival]:
        """One arrival an event, at the time of the part that completed it. Raises ValueError where the server sent an error event."""
        arrivals: list[Arrival] = []
        rest = b""
        for at_s, part in stamped:
            *events, rest = (rest + part).split(_EVENT_END)
            arrivals += [Arrival(at_s, _token_ids(event)) for event in events]
        return arrivals


def completion_request(model: str, prompt: TokenIds, output_tokens: int) -> dict[str, object]:
    """Exactly this many greedy tokens, with their ids."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": output_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }


def _token_ids(event: bytes) -> TokenIds:
    data = event.removeprefix(_DATA)
    if data == _DONE:
        return ()
    message = json.loads(data)
    if "error" in message:
        raise ValueError(f"the server sent an error event: {message['error']}")
    return tuple(token_id for choice in message["choices"] for token_id in choice["token_ids"] or ())
