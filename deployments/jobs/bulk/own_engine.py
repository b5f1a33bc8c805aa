"""An engine of a run's own, in its process. Its methods take and return what the client's methods of the same names do.

The gateway's own code checks requests, tokenizes them and builds results, and the engine is started as a replica starts it. There are no
priority classes and no deadlines, and a request's output arrives as a whole.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, Unpack

from deployments.jobs.failures import JobError
from neox_serve.client import EmbedResult, GenerateResult, calls
from neox_serve.client.calls import ApiCall
from neox_serve.client.options import EmbedOptions, GenerateOptions, Prompt
from neox_serve.core.cluster import Terms
from neox_serve.core.generation.call_life import CallEvent
from neox_serve.core.tenancy.tenant_directory import Principal
from neox_serve.core.tenancy.tenants import ANONYMOUS, PriorityClass, Tenant
from neox_serve.core.types import Delta, DirectSink, EmbeddingRequest, EmbeddingResult, GenerationRequest, Pool
from neox_serve.engine.factory import engine_environment, start_engine
from neox_serve.engine.protocol import Engine
from neox_serve.gateway.handlers.embedding import Embedding
from neox_serve.gateway.handlers.generation import Generation
from neox_serve.gateway.requests.preparing import unsalted
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.server.calls import Call, CallIdentity
from neox_serve.gateway.server.deadlines import Deadline
from neox_serve.model import model_files
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.settings import SettingsError
from neox_serve.settings.slices import JobEngineSettings, PoolEngineSettings, ServedModelSettings

T = TypeVar("T")

_CALLER = Principal(Tenant(ANONYMOUS), "none", frozenset())
_FOREVER_S = 10 * 365 * 86_400.0


class OwnEngine:
    """Runs requests on an engine. Both methods raise ServeError, as the client's do."""

    def __init__(self, engine: Engine, served: Served, tokenizer: Tokenizer, max_requests: int) -> None:
        """`served` describes the model; `max_requests` is the number of requests to keep in flight."""
        self.max_requests = max_requests
        """Number of requests to keep in flight, so that the engine is always busy."""
        dispatcher = _EngineDispatcher(engine)
        self._generation = Generation(served=served, tokenizer=tokenizer, dispatcher=dispatcher, salts=unsalted)
        self._embedding = Embedding(served=served, tokenizer=tokenizer, dispatcher=dispatcher, salts=unsalted)

    async def generate(self, prompts: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]) -> GenerateResult:
        """Completes one prompt or a list of prompts."""
        return await self._answer(calls.generate(prompts, options), self._generation.generate)

    async def embed(self, inputs: Prompt | Sequence[Prompt], **options: Unpack[EmbedOptions]) -> EmbedResult:
        """Turns one input or a list of inputs into vectors."""
        return await self._answer(calls.embed(inputs, options), self._embedding.embed)

    async def _answer(self, api_call: ApiCall[T], handler: Callable[[Call, Any], Awaitable[Any]]) -> T:
        now_s, task = asyncio.get_running_loop().time(), asyncio.current_task()
        if task is None:
            raise RuntimeError("requests must be made in a task")
        identity = CallIdentity(api_call.method, api_call.request_id, _CALLER, PriorityClass.BULK)
        call = Call(identity, Deadline(now_s, now_s + _FOREVER_S), task)
        call.progress.life.advance(CallEvent.ACCEPT)
        return api_call.read(await handler(call, api_call.request))


@asynccontextmanager
async def own_engine(pool: Pool, settings: JobEngineSettings) -> AsyncIterator[OwnEngine]:
    """Starts an engine for the duration of the block. Raises JobError if it does not start.

    This process must not have imported vLLM before, since vLLM reads its environment when it is imported.
    """
    engine_settings = PoolEngineSettings.from_settings(settings, pool)
    os.environ.update(engine_environment(engine_settings) | {"VLLM_LOGGING_LEVEL": "ERROR"})
    try:
        folder = model_files.locate_tokenizer(settings.model.source, settings.model.revision)
        served = Served.from_settings(ServedModelSettings.from_settings(settings), model_files.read_facts(folder))
        engine = await start_engine(engine_settings, offline=True)
    except SettingsError as error:
        raise JobError(str(error), 2) from error
    except RuntimeError as error:
        raise JobError(f"the engine did not start: {error}", 1) from error
    try:
        yield OwnEngine(engine, served, Tokenizer(folder), 2 * engine_settings.engine.max_num_seqs)
    finally:
        await engine.close()


class _EngineDispatcher:
    """Dispatches the gateway's requests to the one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._requests = 0

    async def reserve(self, _tenant: Tenant, _tokens: int) -> "_NoReservation":
        return _NoReservation()

    async def open_generation(self, _model: str, request: GenerationRequest, _terms: Terms) -> "_CollectedStream":
        self._requests += 1
        stream = _CollectedStream(self._engine, self._requests)
        await self._engine.generate(stream.key, request, stream.take)
        return stream

    async def embed(self, _model: str, request: EmbeddingRequest, _terms: Terms) -> EmbeddingResult:
        self._requests += 1
        return await self._engine.embed(self._requests, request)


class _NoReservation:
    """A reservation that reserves nothing."""

    def settle(self, _used_tokens: int) -> None:
        pass


class _CollectedStream:
    """The output of one request, collected until it has ended. It implements TokenStream and is read once."""

    admission_s = 0.0
    replica_id = ""
    gaps_s: Sequence[float] = ()
    explanation = ""
    predicted_cached_tokens = None

    def __init__(self, engine: Engine, key: int) -> None:
        self.key = key
        self._engine = engine
        self._deltas: list[Delta] = []
        self._ended = asyncio.Event()

    def take(self, deltas: Sequence[Delta]) -> None:
        """Collects deltas from the engine."""
        self._deltas.extend(deltas)
        if deltas[-1].end:
            self._ended.set()

    async def next(self, _direct: DirectSink | None = None, /) -> Sequence[Delta]:
        await self._ended.wait()
        return self._deltas

    def cancel(self) -> None:
        if not self._ended.is_set():
            self._aborting = asyncio.get_running_loop().create_task(self._engine.abort(self.key))
