"""A server with OpenAI's completions API, over HTTP streaming by aiohttp, whose parser is in C. Bodies stay bytes until the run is over.

Tokens are counted by their ids, which vLLM's server sends when it is asked for them; a server that does not cannot be measured.
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
    """url: of the server, without a path. headers: sent with every call. root_ca, certificate, key: PEM files for https, as for `Tls`."""

    url: str
    model: str
    headers: tuple[tuple[str, str], ...] = ()
    root_ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Target]:
        """A session with as many connections as there are streams, each kept open between requests."""
        async with self._session() as session:
            yield OpenAiTarget(session, self.model)

    async def max_model_len(self) -> int | None:
        """Most tokens of the model, as vLLM's server says; None where it does not. Raises TargetError where it cannot be asked."""
        try:
            async with self._session() as session, session.get("/v1/models") as response:
                await _require_ok(response)
                models = {model["id"]: model for model in (await response.json())["data"]}
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            raise TargetError(f"{self.url}/v1/models: {type(error).__name__}: {error}") from error
        if self.model not in models:
            raise TargetError(f"{self.url} serves no model {self.model!r}, only {', '.join(sorted(models))}")
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
    """Streams of /v1/completions."""

    def __init__(self, session: aiohttp.ClientSession, model: str) -> None:
        self._session = session
        self._model = model

    async def send(self, prompt: Prompt, output_tokens: int, stamp: Stamp) -> None:
        """One completion. Raises TargetError where the server's answer is an error, else aiohttp.ClientError."""
        async with self._session.post("/v1/completions", json=completion_request(self._model, prompt, output_tokens)) as response:
            await _require_ok(response)
            async for part in response.content.iter_any():
                stamp(part)

    def decode(self, stamped: Sequence[tuple[float, bytes]]) -> Response:
        """One arrival an event, at the time of the part that completed it. Raises ValueError where the server sent an error event."""
        arrivals: list[Arrival] = []
        prompt_tokens, rest = None, b""
        for at_s, part in stamped:
            *events, rest = (rest + part).split(_EVENT_END)
            for message in map(_message, events):
                prompt_tokens = (message.get("usage") or {}).get("prompt_tokens", prompt_tokens)
                arrivals.append(Arrival(at_s, _token_ids(message)))
        return Response(arrivals, prompt_tokens)


def completion_request(model: str, prompt: Prompt, output_tokens: int) -> dict[str, object]:
    """Exactly this many greedy tokens, with their ids; the length of a prompt that is text, too."""
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
        raise ValueError(f"the server sends no {error}; vLLM's server does") from error
