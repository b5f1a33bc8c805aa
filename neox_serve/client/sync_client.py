"""The blocking client. Safe to share between threads."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


class Client:
    """Calls a neox-serve gateway; every method raises ServeError. Use it as a context manager, or close it.

    address: host:port, or any gRPC target (several addresses share the calls). tls: None speaks plain text. api_key: or a token
    of the identity provider; None where a client certificate says it, or nobody asks. metadata goes with every call.
    health_checked: of several addresses, those whose InferenceService is unhealthy get no calls at all, status calls included.
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
        options = channel_options(tls, health_checked=health_checked)
        self.address = address
        self._channel = grpc.secure_channel(address, tls.credentials(), options) if tls else grpc.insecure_channel(address, options)
        self._metadata = call_metadata(api_key, metadata)
        self._retry = retry or RetryPolicy()
        self._stubs: dict[Callable[[Any], Any], Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way are cancelled."""
        self._channel.close()

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]) -> GenerateResult:
        """Completes one prompt (a text, or token ids) or a list of prompts; answers when all are finished."""
        return self._run(calls.generate(prompts, options))

    def stream(self, prompt: Prompt, **options: Unpack[StreamOptions]) -> "GenerationStream":
        """Completes one prompt; iterate over the result. Closing it, or leaving its `with` block, cancels the call."""
        call = calls.stream(prompt, options)
        return GenerationStream(StreamState(call, self._attempts(call), self.address), self._starter(call))

    def estimate(self, prompts: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]) -> Estimate:
        """What `generate` with the same arguments would take, and how long it would wait. Runs nothing."""
        return self._run(calls.estimate(prompts, options))

    def score(self, items: Iterable[tuple[Prompt, Prompt]], **options: Unpack[ScoreOptions]) -> ScoreResult:
        """How likely continuations are, each after a context of its own: pairs of both; an empty context stands for a text's beginning."""
        return self._run(calls.score(items, options))

    def embed(self, inputs: Prompt | Sequence[Prompt], **options: Unpack[EmbedOptions]) -> EmbedResult:
        """Turns one input or a list of inputs into vectors."""
        return self._run(calls.embed(inputs, options))

    def tokenize(
        self, texts: str | Sequence[str], *, include_offsets: bool = False, **options: Unpack[CallOptions]
    ) -> tuple[TokenizedText, ...]:
        """Turns one text or a list of texts into token ids; one result a text."""
        return self._run(calls.tokenize(texts, include_offsets=include_offsets, options=options))

    def detokenize(self, sequences: Sequence[int] | Sequence[Sequence[int]], **options: Unpack[CallOptions]) -> tuple[str, ...]:
        """Turns one sequence of token ids or a list of sequences into texts; one a sequence."""
        return self._run(calls.detokenize(sequences, options))

    def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """All models served."""
        return self._run(calls.list_models(timeout_s))

    def model(self, name: str, *, timeout_s: float | None = None) -> Model:
        """One model. Raises UNKNOWN_MODEL."""
        return self._run(calls.get_model(name, timeout_s))

    def status(self, *, timeout_s: float | None = None) -> ClusterStatus:
        """The cluster as the gateway sees it."""
        return self._run(calls.cluster_status(timeout_s))

    def drain_replica(self, replica_id: str, *, timeout_s: float | None = None) -> None:
        """Has a replica finish what it has and be replaced. Returns at once."""
        self._run(calls.drain_replica(replica_id, timeout_s))

    def create_job(self, work: Literal["generate", "embed"], source: str, output: str, **options: Unpack[JobOptions]) -> BatchJob:
        """Enters a batch job: work for each row of the file source, into the file output, both in the tenant's folder there."""
        return self._run(calls.create_job(work, source, output, options))

    def create_finetune(self, source: str, adapter: str, **options: Unpack[FinetuneOptions]) -> BatchJob:
        """Enters a job that trains an adapter on the examples of a file, or finds it by `request_id`."""
        return self._run(calls.create_finetune(source, adapter, options))

    def create_evaluation(self, tasks: Sequence[str], output: str, **options: Unpack[EvaluateOptions]) -> BatchJob:
        """Enters a job that measures what is served on tasks, or finds it by `request_id`."""
        return self._run(calls.create_evaluation(tasks, output, options))

    def job_log(self, job_id: str, *, timeout_s: float | None = None) -> JobLog:
        """What a batch job's last run writes, as of a few seconds ago. Raises UNKNOWN_JOB."""
        return self._run(calls.job_log(job_id, timeout_s))

    def create_quantization(
        self, scheme: str, output: str, calibration: str, held_out: str, **options: Unpack[QuantizeOptions]
    ) -> BatchJob:
        """Enters a job that makes a checkpoint of fewer bits a weight of the served one, or finds it by `request_id`."""
        return self._run(calls.create_quantization(scheme, output, calibration, held_out, options))

    def job(self, job_id: str, *, timeout_s: float | None = None) -> BatchJob:
        """One batch job. Raises UNKNOWN_JOB."""
        return self._run(calls.get_job(job_id, timeout_s))

    def jobs(self, *, page_size: int | None = None, page_token: str = "", timeout_s: float | None = None) -> BatchJobs:
        """A page of the tenant's batch jobs, the newest first."""
        return self._run(calls.list_jobs(page_size, page_token, timeout_s))

    def cancel_job(self, job_id: str, *, timeout_s: float | None = None) -> BatchJob:
        """Asks for a batch job's end. Returns at once. Raises UNKNOWN_JOB."""
        return self._run(calls.cancel_job(job_id, timeout_s))

    def watch_job(self, job_id: str, *, timeout_s: float | None = None) -> Iterator[BatchJob]:
        """A batch job as it is, then again whenever it has changed, until it has ended; whatever gateways come and go meanwhile."""
        call = calls.watch_job(job_id, timeout_s)
        attempts, start = self._attempts(call), self._starter(call)
        while True:
            rpc = start(attempts.time_left_s(time.monotonic()))
            try:
                for message in rpc:
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
            time.sleep(delay_s)

    def admin(self, request: Message, *, timeout_s: float | None = None) -> Any:
        """Calls the method of AdminService that takes the request (neox_serve.v1.admin_service_pb2), and returns its response."""
        return self._run(calls.admin(request, timeout_s))

    def health(self, service: str = "", *, timeout_s: float | None = None) -> str:
        """SERVING or NOT_SERVING, of the whole server ("") or one service. Raises ServeError for an unknown service."""
        return self._run(calls.health(service, timeout_s))

    def _run(self, call: Call[T]) -> T:
        attempts, start = self._attempts(call), self._starter(call)
        while True:
            rpc = start(attempts.time_left_s(time.monotonic()))
            try:
                return call.read(rpc.result())
            except grpc.RpcError as error:
                translated = translate(error, self.address)
                delay_s = attempts.delay_s(translated, time.monotonic())
                if delay_s is None:
                    raise translated from error
            finally:
                rpc.cancel()
            time.sleep(delay_s)

    def _attempts(self, call: Call[Any]) -> Attempts:
        return Attempts.starting(self._retry, call.timeout_s, time.monotonic())

    def _starter(self, call: Call[Any]) -> Callable[[float | None], Any]:
        """Starts the call; its argument is the time it may take. Unary calls give a future, streams an iterator."""
        method = getattr(self._stub(call.stub), call.method)
        start = getattr(method, "future", method)
        return lambda timeout_s: start(call.request, timeout=timeout_s, metadata=self._metadata)

    def _stub(self, stub: Callable[[Any], Any]) -> Any:
        if stub not in self._stubs:
            self._stubs[stub] = stub(self._channel)
        return self._stubs[stub]


class GenerationStream(Iterator[StreamEvent]):
    """The events of one streamed generation: chunks, then one StreamFinal. Raises ServeError where it fails.

    `close` may be called from any thread; the iteration then ends without an error.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __next__(self) -> StreamEvent:
        while not self._state.over:
            try:
                return self._state.message(next(self._rpc))
            except StopIteration:
                self._state.ended()
            except grpc.RpcError as error:
                self._recover(error)
        raise StopIteration

    def close(self) -> None:
        """Cancels the call, unless it has ended."""
        self._state.over = True
        self._rpc.cancel()

    def _recover(self, error: grpc.RpcError) -> None:
        if self._state.over:
            return
        time.sleep(self._state.failed(error, time.monotonic()))
        if not self._state.over:
            self._rpc = self._start(self._state.attempts.time_left_s(time.monotonic()))
