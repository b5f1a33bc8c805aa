"""The asyncio client: the same surface as `Client`, to be awaited. Belongs to the event loop that first uses it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message

from neox_serve.client import calls
from neox_serve.client.calls import Call
from neox_serve.client.connection import DEFAULT_ADDRESS, Tls, call_metadata, channel_options, translate
from neox_serve.client.options import (
    CallOptions,
    EmbedOptions,
    EvaluateOptions,
    FinetuneOptions,
    GenerateOptions,
    JobOptions,
    Prompt,
    QuantizeOptions,
    ScoreOptions,
    StreamOptions,
)
from neox_serve.client.results import (
    BatchJob,
    BatchJobs,
    ClusterStatus,
    EmbedResult,
    Estimate,
    GenerateResult,
    JobLog,
    Model,
    ScoreResult,
    StreamEvent,
    StreamFinal,
    TokenizedText,
)
from neox_serve.client.retry import Attempts, RetryPolicy
from neox_serve.client.stream_state import StreamState

T = TypeVar("T")


class AsyncClient:
    """Calls a neox-serve gateway; every method raises ServeError. Use it as an async context manager, or close it.

    Arguments as `Client`'s. Cancelling the task that awaits a method cancels the call.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        tls: Tls | None = None,
        api_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry: RetryPolicy | None = None,
        health_checked: bool = False,
    ) -> None:
        self.address = address
        self._tls, self._options = tls, channel_options(tls, health_checked=health_checked)
        self._metadata = call_metadata(api_key, metadata)
        self._retry = retry or RetryPolicy()
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[Callable[[Any], Any], Any] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls under way are cancelled."""
        if self._channel is not None:
            await self._channel.close()

    async def generate(self, prompts: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]) -> GenerateResult:
        """Completes one prompt (a text, or token ids) or a list of prompts; answers when all are finished."""
        return await self._run(calls.generate(prompts, options))

    def stream(self, prompt: Prompt, **options: Unpack[StreamOptions]) -> "AsyncGenerationStream":
        """Completes one prompt; iterate over the result. Closing it, or leaving its `async with` block, cancels the call."""
        call = calls.stream(prompt, options)
        return AsyncGenerationStream(StreamState(call, self._attempts(call), self.address), self._starter(call))

    async def estimate(self, prompts: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]) -> Estimate:
        """What `generate` with the same arguments would take, and how long it would wait. Runs nothing."""
        return await self._run(calls.estimate(prompts, options))

    async def score(self, items: Iterable[tuple[Prompt, Prompt]], **options: Unpack[ScoreOptions]) -> ScoreResult:
        """How likely continuations are, each after a context of its own: pairs of both; an empty context stands for a text's beginning."""
        return await self._run(calls.score(items, options))

    async def embed(self, inputs: Prompt | Sequence[Prompt], **options: Unpack[EmbedOptions]) -> EmbedResult:
        """Turns one input or a list of inputs into vectors."""
        return await self._run(calls.embed(inputs, options))

    async def tokenize(
        self, texts: str | Sequence[str], *, include_offsets: bool = False, **options: Unpack[CallOptions]
    ) -> tuple[TokenizedText, ...]:
        """Turns one text or a list of texts into token ids; one result a text."""
        return await self._run(calls.tokenize(texts, include_offsets=include_offsets, options=options))

    async def detokenize(self, sequences: Sequence[int] | Sequence[Sequence[int]], **options: Unpack[CallOptions]) -> tuple[str, ...]:
        """Turns one sequence of token ids or a list of sequences into texts; one a sequence."""
        return await self._run(calls.detokenize(sequences, options))

    async def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """All models served."""
        return await self._run(calls.list_models(timeout_s))

    async def model(self, name: str, *, timeout_s: float | None = None) -> Model:
        """One model. Raises UNKNOWN_MODEL."""
        return await self._run(calls.get_model(name, timeout_s))

    async def status(self, *, timeout_s: float | None = None) -> ClusterStatus:
        """The cluster as the gateway sees it."""
        return await self._run(calls.cluster_status(timeout_s))

    async def drain_replica(self, replica_id: str, *, timeout_s: float | None = None) -> None:
        """Has a replica finish what it has and be replaced. Returns at once."""
        await self._run(calls.drain_replica(replica_id, timeout_s))

    async def create_job(self, work: Literal["generate", "embed"], source: str, output: str, **options: Unpack[JobOptions]) -> BatchJob:
        """Enters a batch job: work for each row of the file source, into the file output, both in the tenant's folder there."""
        return await self._run(calls.create_job(work, source, output, options))

    async def create_finetune(self, source: str, adapter: str, **options: Unpack[FinetuneOptions]) -> BatchJob:
        """Enters a job that trains an adapter on the examples of a file, or finds it by `request_id`."""
        return await self._run(calls.create_finetune(source, adapter, options))

    async def create_evaluation(self, tasks: Sequence[str], output: str, **options: Unpack[EvaluateOptions]) -> BatchJob:
        """Enters a job that measures what is served on tasks, or finds it by `request_id`."""
        return await self._run(calls.create_evaluation(tasks, output, options))

    async def job_log(self, job_id: str, *, timeout_s: float | None = None) -> JobLog:
        """What a batch job's last run writes, as of a few seconds ago. Raises UNKNOWN_JOB."""
        return await self._run(calls.job_log(job_id, timeout_s))

    async def create_quantization(
        self, scheme: str, output: str, calibration: str, held_out: str, **options: Unpack[QuantizeOptions]
    ) -> BatchJob:
        """Enters a job that makes a checkpoint of fewer bits a weight of the served one, or finds it by `request_id`."""
        return await self._run(calls.create_quantization(scheme, output, calibration, held_out, options))

    async def job(self, job_id: str, *, timeout_s: float | None = None) -> BatchJob:
        """One batch job. Raises UNKNOWN_JOB."""
        return await self._run(calls.get_job(job_id, timeout_s))

    async def jobs(self, *, page_size: int | None = None, page_token: str = "", timeout_s: float | None = None) -> BatchJobs:
        """A page of the tenant's batch jobs, the newest first."""
        return await self._run(calls.list_jobs(page_size, page_token, timeout_s))

    async def cancel_job(self, job_id: str, *, timeout_s: float | None = None) -> BatchJob:
        """Asks for a batch job's end. Returns at once. Raises UNKNOWN_JOB."""
        return await self._run(calls.cancel_job(job_id, timeout_s))

    async def watch_job(self, job_id: str, *, timeout_s: float | None = None) -> AsyncIterator[BatchJob]:
        """A batch job as it is, then again whenever it has changed, until it has ended; whatever gateways come and go meanwhile."""
        call = calls.watch_job(job_id, timeout_s)
        attempts, start = self._attempts(call), self._starter(call)
        while True:
            rpc = start(attempts.time_left_s(time.monotonic()))
            try:
                async for message in rpc:
                    yield call.read(message)
                    attempts.failures = 0
            except grpc.RpcError as error:
                translated = translate(error, self.address)
                delay_s = attempts.watching_delay_s(translated, time.monotonic())
                if delay_s is None:
                    raise translated from error
            else:
                return
            finally:
                rpc.cancel()
            await asyncio.sleep(delay_s)

    async def admin(self, request: Message, *, timeout_s: float | None = None) -> Any:
        """As `Client.admin`."""
        return await self._run(calls.admin(request, timeout_s))

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> str:
        """SERVING or NOT_SERVING, of the whole server ("") or one service. Raises ServeError for an unknown service."""
        return await self._run(calls.health(service, timeout_s))

    async def _run(self, call: Call[T]) -> T:
        attempts, start = self._attempts(call), self._starter(call)
        while True:
            try:
                return call.read(await start(attempts.time_left_s(time.monotonic())))
            except grpc.RpcError as error:
                translated = translate(error, self.address)
                delay_s = attempts.delay_s(translated, time.monotonic())
                if delay_s is None:
                    raise translated from error
            await asyncio.sleep(delay_s)

    def _attempts(self, call: Call[Any]) -> Attempts:
        return Attempts.starting(self._retry, call.timeout_s, time.monotonic())

    def _starter(self, call: Call[Any]) -> Callable[[float | None], Any]:
        """Starts the call; its argument is the time it may take."""
        method = getattr(self._stub(call.stub), call.method)
        return lambda timeout_s: method(call.request, timeout=timeout_s, metadata=self._metadata)

    def _stub(self, stub: Callable[[Any], Any]) -> Any:
        if self._channel is None:
            self._channel = self._connect()
        if stub not in self._stubs:
            self._stubs[stub] = stub(self._channel)
        return self._stubs[stub]

    def _connect(self) -> grpc.aio.Channel:
        """Made at first use, since a channel belongs to the running loop."""
        if self._tls:
            return grpc.aio.secure_channel(self.address, self._tls.credentials(), self._options)
        return grpc.aio.insecure_channel(self.address, self._options)


class AsyncGenerationStream(AsyncIterator[StreamEvent]):
    """The events of one streamed generation: chunks, then one StreamFinal. Raises ServeError where it fails.

    `close` may be called from any task of the loop; the iteration then ends without an error.
    """

    def __init__(self, state: StreamState, start: Callable[[float | None], Any]) -> None:
        self._state, self._start = state, start
        self._rpc = start(state.attempts.time_left_s(time.monotonic()))

    @property
    def request_id(self) -> str:
        """The id that goes with the call, given or made here."""
        return self._state.call.request_id

    @property
    def final(self) -> StreamFinal | None:
        """The final event, once it has come."""
        return self._state.final

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    async def __anext__(self) -> StreamEvent:
        while not self._state.over:
            try:
                message = await self._rpc.read()
            except grpc.RpcError as error:
                await self._recover(error)
            except asyncio.CancelledError:
                if not self._ended_by_close():
                    self.close()
                    raise
            else:
                if message is not grpc.aio.EOF:
                    return self._state.message(message)
                self._state.ended()
        raise StopAsyncIteration

    def close(self) -> None:
        """Cancels the call, unless it has ended."""
        self._state.over = True
        self._rpc.cancel()

    async def _recover(self, error: grpc.RpcError) -> None:
        if self._state.over:
            return
        await asyncio.sleep(self._state.failed(error, time.monotonic()))
        if not self._state.over:
            self._rpc = self._start(self._state.attempts.time_left_s(time.monotonic()))

    def _ended_by_close(self) -> bool:
        """grpc raises CancelledError in the reader of a call that another task has closed; the reader's task may be cancelled as well."""
        task = asyncio.current_task()
        return self._state.over and not (task and task.cancelling())
