"""The engine on vLLM.

A step's life here: the port reads what the engine core computed, every output goes through its request's collector into
a `Job`, and at the end of the step each touched job gives one delta to the outbox, which calls each sink once. No task waits for a request,
so 256 streams cost one wake-up a step.
"""

import asyncio
from collections.abc import Coroutine, Hashable
from functools import partial
from typing import Any

from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.metrics.stats import SchedulerStats

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.prefix_cache.block_ledger import BlockLedger
from neox_serve.core.types import (
    Beam,
    Delta,
    DeltaSink,
    EmbeddingRequest,
    EmbeddingResult,
    EngineStats,
    GenerationRequest,
    Pooling,
    TokenIds,
)
from neox_serve.engine import structured_outputs
from neox_serve.engine.detokenizer import TokenTable
from neox_serve.engine.outbox import Outbox
from neox_serve.engine.vllm import beams, pooling
from neox_serve.engine.vllm import metrics as vllm_metrics
from neox_serve.engine.vllm import requests as vllm_requests
from neox_serve.engine.vllm.adapters import VllmAdapters
from neox_serve.engine.vllm.cache_events import CacheEventReader
from neox_serve.engine.vllm.errors import translate
from neox_serve.engine.vllm.jobs import Job, Sequence
from neox_serve.engine.vllm.ports import Port
from neox_serve.engine.vllm.steps import StepSignal


class VllmEngine:
    """Implements `neox_serve.engine.protocol.Engine`. Used on one event loop, that of its creation. cache: closed with it."""

    def __init__(
        self,
        port: Port,
        steps: StepSignal,
        *,
        table: TokenTable,
        adapters: VllmAdapters,
        native_pooling: Pooling,
        supported_tasks: tuple[str, ...],
        eos_token_id: int,
        cache: CacheEventReader | None = None,
    ) -> None:
        self._port = port
        self._cache = cache
        self._table = table
        self._adapters = adapters
        self._native_pooling = native_pooling
        self._supported_tasks = supported_tasks
        self._eos_token_id = eos_token_id
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[Hashable, Job] = {}
        self._touched: dict[int, Job] = {}
        self._to_stop: list[str] = []
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._outbox = Outbox()
        self._output_tokens_total = 0
        self._kv_usage_fraction = 0.0
        self._closed = False
        self._requests = 0
        steps.connect(self._end_step)
        if cache is not None:
            cache.start()

    @property
    def block_ledger(self) -> BlockLedger | None:
        """What vLLM's prefix cache holds."""
        return self._cache.ledger if self._cache else None

    async def generate(self, key: Hashable, request: GenerationRequest, sink: DeltaSink) -> None:
        """Queues the request. Raises ServeError."""
        self._check_alive()
        adapter = await self._adapters.use(request.adapter, self._adapters_in_use)
        if request.beam is not None:
            beams.check(request)
            return self._start_beam_search(key, request, request.beam, sink, adapter)
        job = Job(key, request, sink, self._table)
        self._jobs[key] = job
        try:
            for prepared in await self._prepare(request, adapter):
                if not job.closed:
                    await self._submit(job, prepared)
        except BaseException as error:
            self._drop(job)
            if isinstance(error, Exception):
                raise self._explained(request, error) from error
            raise
        return None

    async def embed(self, key: Hashable, request: EmbeddingRequest) -> EmbeddingResult:
        """The vector of an input. Raises ServeError."""
        self._check_alive()
        flight = self._loop.create_task(self._embed(request))
        self._flights[key] = flight
        try:
            await asyncio.wait({flight})
        finally:
            flight.cancel()
            self._flights.pop(key, None)
        if flight.cancelled():
            self._check_alive()
            raise ServeError(Reason.CANCELLED, "the request was aborted")
        return flight.result()

    async def abort(self, key: Hashable) -> None:
        """Forgets the request and frees its KV blocks with the engine core's next step."""
        if flight := self._flights.pop(key, None):
            flight.cancel()
        if job := self._jobs.get(key):
            self._drop(job)

    def stats(self) -> EngineStats:
        """The load after the last step. A request waits until it has its first token."""
        running = sum(job.started for job in self._jobs.values())
        idle = not self._jobs and not self._flights
        return EngineStats(
            running_requests=running + len(self._flights),
            waiting_requests=len(self._jobs) - running,
            kv_usage_fraction=0.0 if idle else self._kv_usage_fraction,
            output_tokens_total=self._output_tokens_total,
            adapters=self._adapters.loaded,
            prefill_backlog_tokens=sum(len(job.request.prompt_token_ids) for job in self._jobs.values() if not job.started),
        )

    async def check_health(self) -> None:
        """Raises REPLICA_LOST once the engine core or one of its workers is gone."""
        self._check_alive()

    def metrics_text(self) -> str:
        """vLLM's own metrics."""
        return vllm_metrics.text()

    async def close(self) -> None:
        """Ends what runs with REPLICA_LOST and stops the engine core and its workers. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._fail_all(ServeError(Reason.REPLICA_LOST, "the engine was stopped"))
        for task in (*self._flights.values(), *self._background):
            task.cancel()
        if self._cache is not None:
            await self._cache.close()
        await self._port.close()

    async def _prepare(self, request: GenerationRequest, adapter: LoRARequest | None) -> list[EngineCoreRequest]:
        """All sequences as vLLM's requests, so that a parameter it refuses is known before any runs.

        Building a grammar to see whether it can be built takes time; that happens off the event loop.
        """
        params = [vllm_requests.sampling_params(request, index) for index in range(request.n)]
        if request.structured_output is None:
            return [self._core_request(request.prompt_token_ids, each, request.cache_salt, adapter) for each in params]
        structured_outputs.check_syntax(request.structured_output)
        ids, salt = request.prompt_token_ids, request.cache_salt
        return [await asyncio.to_thread(self._core_request, ids, each, salt, adapter) for each in params]

    def _core_request(
        self, token_ids: TokenIds, params: SamplingParams | PoolingParams, salt: str | None, adapter: LoRARequest | None = None
    ) -> EngineCoreRequest:
        self._requests += 1
        processor, inputs = self._port.input_processor, tokens_input(list(token_ids), cache_salt=salt)
        request = processor.process_inputs(str(self._requests), inputs, params, supported_tasks=self._supported_tasks, lora_request=adapter)
        processor.assign_request_id(request)
        return request

    async def _submit(self, job: Job, prepared: EngineCoreRequest) -> None:
        sequence = job.add_sequence(prepared.request_id)
        await self._port.submit(prepared, partial(self._receive, job, sequence))
        if job.closed:
            await self._stop([prepared.request_id])

    def _receive(self, job: Job, sequence: Sequence, output: RequestOutput | Exception) -> None:
        if job.closed:
            return
        self._touched[id(job)] = job
        if isinstance(output, Exception):
            job.failure = translate(output)
            self._loop.call_soon(self._end_step, None)
            return
        if (vllm_id := job.receive(sequence, output)) is not None:
            self._to_stop.append(vllm_id)

    def _end_step(self, stats: SchedulerStats | None) -> None:
        """All outputs of a step are in: tells the sinks, and vLLM what need not go on."""
        if stats is not None:
            self._kv_usage_fraction = stats.kv_cache_usage
        touched, self._touched = self._touched, {}
        for job in touched.values():
            self._tell(job)
        self._outbox.flush()
        if self._to_stop:
            ids, self._to_stop = self._to_stop, []
            self._in_background(self._stop(ids))

    def _tell(self, job: Job) -> None:
        delta = None if job.closed else job.take_delta()
        if delta is None:
            return
        for part in delta.sequences:
            self._output_tokens_total += len(part.token_ids)
        if delta.end:
            self._finish(job)
        self._outbox.add(job.sink, delta)

    def _finish(self, job: Job) -> None:
        job.closed = True
        self._jobs.pop(job.key, None)
        self._to_stop += job.live_ids

    def _drop(self, job: Job) -> None:
        """Ends a job without a word to its sink."""
        self._outbox.discard(job.sink, job.key)
        job.closed = True
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
        if job.live_ids:
            self._in_background(self._stop(job.live_ids))

    def _fail_all(self, failure: ServeError) -> None:
        for job in tuple(self._jobs.values()):
            job.failure = failure
            self._touched[id(job)] = job
        self._end_step(None)

    async def _stop(self, vllm_ids: list[str]) -> None:
        """Takes requests out of vLLM. A dead engine has nothing to stop."""
        if not self._closed:
            await self._port.stop(vllm_ids)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _one_output(self, prepared: EngineCoreRequest) -> Any:
        """The only output of a request that has one. Cancelling this frees the request."""
        arrived: asyncio.Future[Any] = self._loop.create_future()

        def settle(output: RequestOutput | PoolingRequestOutput | Exception) -> None:
            if arrived.done():
                return
            if isinstance(output, Exception):
                arrived.set_exception(output)
            elif output.finished:
                arrived.set_result(output)

        try:
            await self._port.submit(prepared, settle)
            return await arrived
        except asyncio.CancelledError:
            self._in_background(self._stop([prepared.request_id]))
            raise
        except Exception as error:
            raise translate(error) from error

    async def _embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        native = request.pooling is self._native_pooling
        params = vllm_requests.pooling_params(whole=not native)
        try:
            prepared = self._core_request(request.prompt_token_ids, params, request.cache_salt)
        except Exception as error:
            raise translate(error) from error
        output: PoolingRequestOutput = await self._one_output(prepared)
        return pooling.result(output, request, whole=not native)

    def _start_beam_search(
        self, key: Hashable, request: GenerationRequest, beam: Beam, sink: DeltaSink, adapter: LoRARequest | None
    ) -> None:
        step = partial(self._beam_candidates, request.cache_salt, adapter)
        flight = self._loop.create_task(beams.run(request, beam, self._table, self._eos_token_id, step))
        self._flights[key] = flight
        flight.add_done_callback(partial(self._end_beam_search, key, sink))

    async def _beam_candidates(self, salt: str | None, adapter: LoRARequest | None, token_ids: TokenIds, candidates: int) -> RequestOutput:
        prepared = self._core_request(token_ids, vllm_requests.beam_step_params(candidates), salt, adapter)
        output: RequestOutput = await self._one_output(prepared)
        return output

    def _end_beam_search(self, key: Hashable, sink: DeltaSink, flight: "asyncio.Task[beams.Found]") -> None:
        """A search that was aborted is no longer among the flights, and nothing is said of it."""
        if self._flights.get(key) is not flight:
            return
        del self._flights[key]
        if flight.cancelled():
            delta = Delta(key, end=True, failure=ServeError(Reason.REPLICA_LOST, "the engine was stopped"))
        elif error := flight.exception():
            delta = Delta(key, end=True, failure=error if isinstance(error, ServeError) else translate(error))
        else:
            found = flight.result()
            self._output_tokens_total += sum(len(sequence.token_ids) for sequence in found.sequences)
            delta = Delta(key, found.sequences, found.prompt, end=True)
        self._outbox.add(sink, delta)
        self._outbox.flush()

    def _adapters_in_use(self) -> set[str]:
        return {job.request.adapter for job in self._jobs.values() if job.request.adapter is not None}

    def _explained(self, request: GenerationRequest, error: Exception) -> ServeError:
        ours = error if isinstance(error, ServeError) else translate(error)
        return (
            ours
            if request.structured_output is None or ours.violations
            else vllm_requests.explain_structured_output(request.structured_output, ours)
        )

    def _check_alive(self) -> None:
        if self._closed or self._port.errored:
            raise ServeError(Reason.REPLICA_LOST, "the engine has stopped")
