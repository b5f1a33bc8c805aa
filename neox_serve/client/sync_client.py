"""The blocking client. It may be shared between threads."""

# Generated from async_client.py by `make generate-client`. Do not edit.

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar

import grpc
from google.protobuf.message import Message
from typing_extensions import Self, Unpack

from neox_serve.client import calls
from neox_serve.client.calls import ApiCall
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
from neox_serve.client.sync_transport import ResponseStream, Transport, sleep

T = TypeVar("T")


class Client:
    """Calls a neox-serve gateway. Use it as a context manager, or call `close`. Every method raises ServeError if its call fails."""

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
        """Makes a client; nothing is sent yet.

        address: host:port, or any gRPC target. Calls are spread over all addresses that the target resolves to.
        tls: TLS settings; None: plain text.
        api_key: an API key, or a token of the identity provider; None if a client certificate identifies the caller, or nothing does.
        metadata: sent with every call.
        retry: when the client repeats a failed call; None: RetryPolicy's defaults.
        health_checked: send no calls to addresses whose InferenceService is unhealthy. This holds for status calls as well.
        """
        self.address = address
        options = channel_options(tls, health_checked=health_checked)
        self._transport = Transport(address, tls, options, call_metadata(api_key, metadata))
        self._retry = retry or RetryPolicy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection, which cancels all calls."""
        self._transport.close()

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]) -> GenerateResult:
        """Completes one prompt (text, token ids or chat messages) or a list of prompts. Returns when all of them are finished."""
        return self._run(calls.generate(prompts, options))

    def stream(self, prompt: Prompt, **options: Unpack[StreamOptions]) -> "GenerationStream":
        """Completes one prompt. Iterate over the result; closing it, or leaving its `with` block, cancels the call."""
        call = calls.stream(prompt, options)
        return GenerationStream(StreamState(call, self._attempts(call), self.address), self._transport)

    def estimate(self, prompts: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]) -> Estimate:
        """Estimates what `generate` with the same arguments would cost and how long it would wait. Runs nothing."""
        return self._run(calls.estimate(prompts, options))

    def score(self, items: Iterable[tuple[Prompt, Prompt]], **options: Unpack[ScoreOptions]) -> ScoreResult:
        """Returns the log-likelihood of each continuation after its context.

        items: pairs of context and continuation. An empty context stands for the beginning of a text.
        """
        return self._run(calls.score(items, options))

    def embed(self, inputs: Prompt | Sequence[Prompt], **options: Unpack[EmbedOptions]) -> EmbedResult:
        """Returns a vector for one input, or for each of a list of inputs."""
        return self._run(calls.embed(inputs, options))

    def tokenize(
        self, texts: str | Sequence[str], *, include_offsets: bool = False, **options: Unpack[CallOptions]
    ) -> tuple[TokenizedText, ...]:
        """Converts one text or a list of texts to token ids, with one result per text.

        include_offsets: also return where each token stands in its text.
        """
        return self._run(calls.tokenize(texts, include_offsets=include_offsets, options=options))

    def detokenize(self, sequences: Sequence[int] | Sequence[Sequence[int]], **options: Unpack[CallOptions]) -> tuple[str, ...]:
        """Converts one sequence of token ids or a list of sequences to texts, with one text per sequence."""
        return self._run(calls.detokenize(sequences, options))

    def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """Lists the models that are served."""
        return self._run(calls.list_models(timeout_s))

    def model(self, name: str, *, timeout_s: float | None = None) -> Model:
        """Describes one model. Raises UNKNOWN_MODEL."""
        return self._run(calls.get_model(name, timeout_s))

    def status(self, *, timeout_s: float | None = None) -> ClusterStatus:
        """Returns the state of the cluster as the gateway sees it."""
        return self._run(calls.cluster_status(timeout_s))

    def drain_replica(self, replica_id: str, *, timeout_s: float | None = None) -> None:
        """Tells a replica to finish its requests; it is then replaced. Returns without waiting for that."""
        self._run(calls.drain_replica(replica_id, timeout_s))

    def create_job(self, work: Literal["generate", "embed"], source: str, output: str, **options: Unpack[JobOptions]) -> BatchJob:
        """Creates a batch job that runs `work` for each row of a file, or returns the one with the same `request_id`.

        source, output: the input and output files, as paths in the tenant's folder on the cluster.
        """
        return self._run(calls.create_job(work, source, output, options))

    def create_finetune(self, source: str, adapter: str, **options: Unpack[FinetuneOptions]) -> BatchJob:
        """Creates a job that trains a LoRA adapter on the examples of a file, or returns the one with the same `request_id`."""
        return self._run(calls.create_finetune(source, adapter, options))

    def create_evaluation(self, tasks: Sequence[str], output: str, **options: Unpack[EvaluateOptions]) -> BatchJob:
        """Creates a job that evaluates the served model on tasks, or returns the one with the same `request_id`."""
        return self._run(calls.create_evaluation(tasks, output, options))

    def create_quantization(
        self, scheme: str, output: str, calibration: str, held_out: str, **options: Unpack[QuantizeOptions]
    ) -> BatchJob:
        """Creates a job that quantizes the served model to a new checkpoint, or returns the one with the same `request_id`."""
        return self._run(calls.create_quantization(scheme, output, calibration, held_out, options))

    def job(self, job_id: str, *, timeout_s: float | None = None) -> BatchJob:
        """Returns one batch job. Raises UNKNOWN_JOB."""
        return self._run(calls.get_job(job_id, timeout_s))

    def jobs(self, *, page_size: int | None = None, page_token: str = "", timeout_s: float | None = None) -> BatchJobs:
        """Returns a page of the tenant's batch jobs, newest first."""
        return self._run(calls.list_jobs(page_size, page_token, timeout_s))

    def job_log(self, job_id: str, *, timeout_s: float | None = None) -> JobLog:
        """Returns the log of a batch job's last run, which may be a few seconds old. Raises UNKNOWN_JOB."""
        return self._run(calls.job_log(job_id, timeout_s))

    def cancel_job(self, job_id: str, *, timeout_s: float | None = None) -> BatchJob:
        """Requests the cancellation of a batch job. Returns without waiting for it. Raises UNKNOWN_JOB."""
        return self._run(calls.cancel_job(job_id, timeout_s))

    def watch_job(self, job_id: str, *, timeout_s: float | None = None) -> Iterator[BatchJob]:
        """Yields a batch job now and after every change until it has ended. It reconnects if the gateway goes away."""
        call = calls.watch_job(job_id, timeout_s)
        attempts = self._attempts(call)
        while True:
            responses = self._transport.stream(call, attempts.time_left_s(time.monotonic()))
            try:
                while (message := responses.read()) is not None:
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
                responses.cancel()
            sleep(delay_s)

    def admin(self, request: Message, *, timeout_s: float | None = None) -> Any:
        """Calls the AdminService method that takes this request (see neox_serve.v1.admin_service_pb2) and returns its response message."""
        return self._run(calls.admin(request, timeout_s))

    def health(self, service: str = "", *, timeout_s: float | None = None) -> str:
        """Returns "SERVING" or "NOT_SERVING" for one service, or for the whole server if `service` is empty."""
        return self._run(calls.health(service, timeout_s))

    def _run(self, call: ApiCall[T]) -> T:
        attempts = self._attempts(call)
        while True:
            try:
                return call.read(self._transport.unary(call, attempts.time_left_s(time.monotonic())))
            except grpc.RpcError as error:
                translated = translate(error, self.address)
                delay_s = attempts.delay_s(translated, time.monotonic())
                if delay_s is None:
                    raise translated from error
            sleep(delay_s)

    def _attempts(self, call: ApiCall[Any]) -> Attempts:
        return Attempts.starting(self._retry, call.timeout_s, time.monotonic())


class GenerationStream(Iterator[StreamEvent]):
    """The events of one streamed generation: StreamChunk events, then one StreamFinal. Iterating raises ServeError if the call fails.

    `close` may be called from any thread; the iteration then ends without an error.
    """

    def __init__(self, state: StreamState, transport: Transport) -> None:
        self._state, self._transport = state, transport
        self._responses = self._start()

    @property
    def request_id(self) -> str:
        """The request id sent with the call: the caller's, or one that the client made."""
        return self._state.call.request_id

    @property
    def final(self) -> StreamFinal | None:
        """The final event, once it has arrived."""
        return self._state.final

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __next__(self) -> StreamEvent:
        while not (self._state.ended or self._responses.cancelled):
            try:
                message = self._responses.read()
            except grpc.RpcError as error:  # noqa: PERF203 - a failed call is started again
                self._restart(error)
            else:
                if message is not None:
                    return self._state.on_message(message)
                self._state.on_end()
        raise StopIteration

    def close(self) -> None:
        """Cancels the call unless it has ended."""
        self._state.ended = True
        self._responses.cancel()

    def _restart(self, error: grpc.RpcError) -> None:
        """Starts the call again after a delay. Raises ServeError if the failure is final."""
        sleep(self._state.on_failure(error, time.monotonic()))
        if not self._state.ended:
            self._responses = self._start()

    def _start(self) -> ResponseStream:
        return self._transport.stream(self._state.call, self._state.attempts.time_left_s(time.monotonic()))
