"""The engine on vLLM.

Theory of operation: in each step the port reads what the engine core computed, and every output passes through its request's collector into
an `ActiveRequest`. At the end of the step each request with new output adds one delta to the step buffer, which calls each sink once. No
task waits for a request, so 256 streams cost one wake-up per step.
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
from neox_serve.engine.step_buffer import StepBuffer
from neox_serve.engine.vllm import beams, pooling
from neox_serve.engine.vllm import metrics as vllm_metrics
from neox_serve.engine.vllm import requests as vllm_requests
from neox_serve.engine.vllm.active_request import ActiveRequest, Sequence
from neox_serve.engine.vllm.adapters import VllmAdapters
from neox_serve.engine.vllm.cache_events import CacheEventReader
from neox_serve.engine.vllm.errors import translate
from neox_serve.engine.vllm.ports import Port
from neox_serve.engine.vllm.steps import StepSignal


class VllmEngine:
    """Implements `neox_serve.engine.protocol.Engine`. It must be used on the event loop that it was created on, and closes its `cache`."""

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
        self._active: dict[Hashable, ActiveRequest] = {}
        self._updated: dict[int, ActiveRequest] = {}  # requests with output in the current step
        self._to_stop: list[str] = []  # vLLM requests to abort after the current step
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}  # embeddings and beam searches
        self._background: set[asyncio.Task[None]] = set()
        self._step_buffer = StepBuffer()
        self._output_tokens_total = 0
        self._kv_usage_fraction = 0.0
        self._closed = False
        self._requests = 0
        steps.connect(self._end_step)
        if cache is not None:
            cache.start()

    @property
    def block_ledger(self) -> BlockLedger | None:
        """The content of vLLM's prefix cache; None if the engine does not report it."""
        return self._cache.ledger if self._cache else None

    async def generate(self, key: Hashable, request: GenerationRequest, sink: DeltaSink) -> None:
        """Queues the request. Raises ServeError."""
        self._check_alive()
        adapter = await self._adapters.use(request.adapter, self._adapters_in_use)
        if request.beam is not None:
            beams.check(request)
            return self._start_beam_search(key, request, request.beam, sink, adapter)
        active = ActiveRequest(key, request, sink, self._table)
        self._active[key] = active
        try:
            for prepared in await self._prepare(request, adapter):
                if not active.closed:
                    await self._submit(active, prepared)
        except BaseException as error:
            self._drop(active)
            if isinstance(error, Exception):
                raise self._explained(request, error) from error
            raise
        return None

    async def embed(self, key: Hashable, request: EmbeddingRequest) -> EmbeddingResult:
        """Returns the vector of an input. Raises ServeError."""
        self._check_alive()
        task = self._loop.create_task(self._embed(request))
        self._tasks[key] = task
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
            self._tasks.pop(key, None)
        if task.cancelled():
            self._check_alive()
            raise ServeError(Reason.CANCELLED, "the request was aborted")
        return task.result()

    async def abort(self, key: Hashable) -> None:
        """Drops the request. The engine core frees its KV blocks in its next step."""
        if task := self._tasks.pop(key, None):
            task.cancel()
        if active := self._active.get(key):
            self._drop(active)

    def stats(self) -> EngineStats:
        """Returns the load after the last step. A request counts as waiting until it has its first token."""
        running = sum(active.started for active in self._active.values())
        idle = not self._active and not self._tasks
        return EngineStats(
            running_requests=running + len(self._tasks),
            waiting_requests=len(self._active) - running,
            kv_usage_fraction=0.0 if idle else self._kv_usage_fraction,
            output_tokens_total=self._output_tokens_total,
            adapters=self._adapters.loaded,
            prefill_backlog_tokens=sum(len(active.request.prompt_token_ids) for active in self._active.values() if not active.started),
        )

    async def check_health(self) -> None:
        """Raises REPLICA_LOST if the engine core or one of its workers has died."""
        self._check_alive()

    def metrics_text(self) -> str:
        """Returns vLLM's own metrics in Prometheus' text format."""
        return vllm_metrics.text()

    async def close(self) -> None:
        """Ends running requests with REPLICA_LOST and stops the engine core and its workers. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._fail_all(ServeError(Reason.REPLICA_LOST, "the engine was stopped"))
        for task in (*self._tasks.values(), *self._background):
            task.cancel()
        if self._cache is not None:
            await self._cache.close()
        await self._port.close()

    async def _prepare(self, request: GenerationRequest, adapter: LoRARequest | None) -> list[EngineCoreRequest]:
        """Returns a vLLM request for each sequence. All are validated before any is submitted.

        Validating a structured output compiles its grammar, which takes time and therefore happens on another thread.
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

    async def _submit(self, active: ActiveRequest, prepared: EngineCoreRequest) -> None:
        sequence = active.add_sequence(prepared.request_id)
        await self._port.submit(prepared, partial(self._receive, active, sequence))
        if active.closed:
            await self._stop([prepared.request_id])

    def _receive(self, active: ActiveRequest, sequence: Sequence, output: RequestOutput | Exception) -> None:
        if active.closed:
            return
        self._updated[id(active)] = active
        if isinstance(output, Exception):
            active.failure = translate(output)
            self._loop.call_soon(self._end_step, None)
            return
        if (vllm_id := active.receive(sequence, output)) is not None:
            self._to_stop.append(vllm_id)

    def _end_step(self, stats: SchedulerStats | None) -> None:
        """Called when all outputs of a step have arrived: sends the deltas, and aborts vLLM requests that are no longer needed."""
        if stats is not None:
            self._kv_usage_fraction = stats.kv_cache_usage
        updated, self._updated = self._updated, {}
        for active in updated.values():
            self._buffer_delta(active)
        self._step_buffer.flush()
        if self._to_stop:
            ids, self._to_stop = self._to_stop, []
            self._in_background(self._stop(ids))

    def _buffer_delta(self, active: ActiveRequest) -> None:
        delta = None if active.closed else active.take_delta()
        if delta is None:
            return
        for part in delta.sequences:
            self._output_tokens_total += len(part.token_ids)
        if delta.end:
            self._finish(active)
        self._step_buffer.add(active.sink, delta)

    def _finish(self, active: ActiveRequest) -> None:
        active.closed = True
        self._active.pop(active.key, None)
        self._to_stop += active.live_ids

    def _drop(self, active: ActiveRequest) -> None:
        """Ends a request without sending anything to its sink."""
        self._step_buffer.discard(active.sink, active.key)
        active.closed = True
        if self._active.get(active.key) is active:
            del self._active[active.key]
        if active.live_ids:
            self._in_background(self._stop(active.live_ids))

    def _fail_all(self, failure: ServeError) -> None:
        for active in tuple(self._active.values()):
            active.failure = failure
            self._updated[id(active)] = active
        self._end_step(None)

    async def _stop(self, vllm_ids: list[str]) -> None:
        """Aborts vLLM requests, unless the engine is closed."""
        if not self._closed:
            await self._port.stop(vllm_ids)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _one_output(self, prepared: EngineCoreRequest) -> Any:
        """Runs a vLLM request that has a single output and returns it. Cancelling the call frees the request."""
        arrived: asyncio.Future[Any] = self._loop.create_future()

        def receive(output: RequestOutput | PoolingRequestOutput | Exception) -> None:
            if arrived.done():
                return
            if isinstance(output, Exception):
                arrived.set_exception(output)
            elif output.finished:
                arrived.set_result(output)

        try:
            await self._port.submit(prepared, receive)
            return await arrived
        except asyncio.CancelledError:
            self._in_background(self._stop([prepared.request_id]))
            raise
        except Exception as error:
            raise translate(error) from error

    async def _embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        native = request.pooling is self._native_pooling
        params = vllm_requests.pooling_params(per_token=not native)
        try:
            prepared = self._core_request(request.prompt_token_ids, params, request.cache_salt)
        except Exception as error:
            raise translate(error) from error
        output: PoolingRequestOutput = await self._one_output(prepared)
        return pooling.result(output, request, per_token=not native)

    def _start_beam_search(
        self, key: Hashable, request: GenerationRequest, beam: Beam, sink: DeltaSink, adapter: LoRARequest | None
    ) -> None:
        step = partial(self._beam_candidates, request.cache_salt, adapter)
        task = self._loop.create_task(beams.run(request, beam, self._table, self._eos_token_id, step))
        self._tasks[key] = task
        task.add_done_callback(partial(self._end_beam_search, key, sink))

    async def _beam_candidates(self, salt: str | None, adapter: LoRARequest | None, token_ids: TokenIds, candidates: int) -> RequestOutput:
        prepared = self._core_request(token_ids, vllm_requests.beam_step_params(candidates), salt, adapter)
        output: RequestOutput = await self._one_output(prepared)
        return output

    def _end_beam_search(self, key: Hashable, sink: DeltaSink, task: "asyncio.Task[beams.BeamSearchResult]") -> None:
        """Sends the result of a beam search. An aborted search is no longer in `_tasks`, and nothing is sent."""
        if self._tasks.get(key) is not task:
            return
        del self._tasks[key]
        if task.cancelled():
            delta = Delta(key, end=True, failure=ServeError(Reason.REPLICA_LOST, "the engine was stopped"))
        elif error := task.exception():
            delta = Delta(key, end=True, failure=error if isinstance(error, ServeError) else translate(error))
        else:
            found = task.result()
            self._output_tokens_total += sum(len(sequence.token_ids) for sequence in found.sequences)
            delta = Delta(key, found.sequences, found.prompt, end=True)
        self._step_buffer.add(sink, delta)
        self._step_buffer.flush()

    def _adapters_in_use(self) -> set[str]:
        return {active.request.adapter for active in self._active.values() if active.request.adapter is not None}

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
