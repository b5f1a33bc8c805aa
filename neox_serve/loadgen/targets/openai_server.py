"""A server with OpenAI's completions API, over streaming HTTP with aiohttp, whose parser is written in C.

Bodies stay bytes until the run is over. Tokens are counted by their ids, which vLLM's server sends on request. A server that does not send
them cannot be measured.
"""

import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from neox_serve.core.types import TokenIds
from neox_serve.loadgen.records import Arrival, Response
from neox_serve.loadgen.targets import Stamp, Target, TargetError
from neox_serve.loadgen.workloads import Prompt

_EVENT_END = b"\n\n"
_DATA = b"data: "
_DONE = b"[DONE]"
_RESPONSE_S = 600.0
_ERROR_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class OpenAiSpec:
    """How to connect to a server."""

    url: str
    """URL of the server without a path."""
    model: str
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with every request."""
    root_ca: Path | None = None
    """PEM file with the certificate authorities for https; None uses those of the system."""
    certificate: Path | None = None
    """PEM file with the client certificate."""
    key: Path | None = None
    """PEM file with the client's private key."""

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Target]:
        """Opens a session with one connection per stream, kept open between requests."""
        async with self._session() as session:
            yield OpenAiTarget(session, self.model)

    async def max_model_len(self) -> int | None:
        """Returns the model's context length as vLLM's server reports it, or None. Raises TargetError if the request fails."""
        try:
            async with self._session() as session, session.get("/v1/models") as response:
                await _require_ok(response)
                models = {model["id"]: model for model in (await response.json())["data"]}
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            raise TargetError(f"{self.url}/v1/models: {type(error).__name__}: {error}") from error
        if self.model not in models:
            raise TargetError(f"{self.url} does not serve model {self.model!r}; it serves {', '.join(sorted(models))}")
        found: int | None = models[self.model].get("max_model_len")
        return found

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._ssl())
        timeout = aiohttp.ClientTimeout(total=_RESPONSE_S)
        return aiohttp.ClientSession(self.url, connector=connector, timeout=timeout, headers=self.headers)

    def _ssl(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.root_ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


class OpenAiTarget:
    """Sends requests to /v1/completions."""

    def __init__(self, session: aiohttp.ClientSession, model: str) -> None:
        self._session = session
        self._model = model

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """Makes one completion request. Raises TargetError if the server returns an error, and aiohttp.ClientError."""
        async with self._session.post("/v1/completions", json=completion_request(self._model, prompt, output_tokens)) as response:
            await _require_ok(response)
            async for part in response.content.iter_any():
                stamp(part)

    def decode(self, stamped: Sequence[tuple[float, bytes]]) -> Response:
        """Decodes the events; each one is an arrival at the time of the part that completed it. Raises ValueError for an error event."""
        arrivals: list[Arrival] = []
        prompt_tokens, rest = None, b""
        for at_s, part in stamped:
            *events, rest = (rest + part).split(_EVENT_END)
            for message in map(_message, events):
                prompt_tokens = (message.get("usage") or {}).get("prompt_tokens", prompt_tokens)
                arrivals.append(Arrival(at_s, _token_ids(message)))
        return Response(arrivals, prompt_tokens)


def completion_request(model: str, prompt: Prompt, output_tokens: int) -> dict[str, object]:
    """Returns the body of a request for exactly this many greedy tokens and their ids, and for the length of a text prompt."""
    text = isinstance(prompt, str)
    return {
        "model": model,
        "prompt": prompt if text else list(prompt),
        "max_tokens": output_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        **({"stream_options": {"include_usage": True}} if text else {}),
    }


async def _require_ok(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        raise TargetError(f"HTTP {response.status}: {(await response.text())[:_ERROR_CHARACTERS]}")


def _message(event: bytes) -> dict[str, Any]:
    data = event.removeprefix(_DATA)
    if data == _DONE:
        return {"choices": []}
    message: dict[str, Any] = json.loads(data)
    if "error" in message:
        raise ValueError(f"the server sent an error event: {message['error']}")
    return message


def _token_ids(message: dict[str, Any]) -> TokenIds:
    try:
        return tuple(token_id for choice in message["choices"] for token_id in choice["token_ids"] or ())
    except KeyError as error:
        raise ValueError(f"the server does not send {error}; use a server that does, such as vLLM's") from error
