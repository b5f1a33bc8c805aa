"""Connections to vLLM's engine core, which runs either in its own process or on this process's event loop.

With a separate process, this process's interpreter is free to stream outputs. On the event loop, no step is passed between processes, which
on CPUs takes time from the engine core's own computation; this suits batch requests, whose outputs no one reads while they are generated.
"""

import asyncio
from functools import partial
from typing import Protocol

import structlog
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.llm_engine import LLMEngine

from neox_serve.engine.vllm.processes.stopping import EngineProcesses
from neox_serve.engine.vllm.steps import DirectCollector, OnOutput, StepSignal

_log = structlog.get_logger(__name__)


class Port(Protocol):
    """A connection to one engine core. It may be used on one event loop only, on which it calls back."""

    @property
    def input_processor(self) -> InputProcessor:
        """Creates vLLM's requests."""

    @property
    def errored(self) -> bool:
        """Whether the engine core is dead."""

    async def submit(self, prepared: EngineCoreRequest, on_output: OnOutput) -> None:
        """Queues a request. `on_output` is called with each output, or once with an exception."""

    async def stop(self, vllm_ids: list[str]) -> None:
        """Aborts requests. Does nothing if the engine core is dead."""

    async def add_lora(self, request: LoRARequest) -> object:
        """Loads an adapter."""

    async def remove_lora(self, lora_id: int) -> object:
        """Unloads an adapter by its number."""

    async def close(self) -> None:
        """Stops the engine core and everything that it has started."""


class ProcessPort:
    """The connection to an AsyncLLM, whose engine core runs in its own process."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._processes = EngineProcesses(llm)
        self.input_processor = llm.input_processor
        self.add_lora = llm.add_lora
        self.remove_lora = llm.remove_lora

    @property
    def errored(self) -> bool:
        """Whether vLLM reports that the engine core is dead."""
        return bool(self._llm.errored)

    async def submit(self, prepared: EngineCoreRequest, on_output: OnOutput) -> None:
        """Queues a request; vLLM's output handler delivers the outputs."""
        self._llm.output_processor.add_request(prepared, None, None, 0, DirectCollector(prepared.request_id, on_output))
        await self._llm.engine_core.add_request_async(prepared)

    async def stop(self, vllm_ids: list[str]) -> None:
        """Aborts requests in the output processor and in the engine core."""
        ids = self._llm.output_processor.abort_requests(vllm_ids, internal=True)
        if not self.errored:
            await self._llm.engine_core.abort_requests_async(list({*ids, *vllm_ids}))

    async def close(self) -> None:
        """Stops all processes."""
        await self._processes.stop(self._llm)


class LoopPort:
    """The connection to an LLMEngine that steps on the event loop. A step blocks the loop; other tasks run between two steps.

    Steps on another thread would compete with the event loop for the interpreter lock at every operation.
    """

    def __init__(self, llm: LLMEngine, steps: StepSignal) -> None:
        self._llm = llm
        self._steps = steps
        self._loop = asyncio.get_running_loop()
        self._outputs: list[tuple[OnOutput, RequestOutput | PoolingRequestOutput | Exception]] = []
        self._waiting: dict[str, OnOutput] = {}
        self._next: asyncio.Handle | None = None
        self.errored = False
        self.input_processor = llm.input_processor

    async def submit(self, prepared: EngineCoreRequest, on_output: OnOutput) -> None:
        """Queues a request; outputs are delivered at the end of their step."""
        self._check_alive()
        vllm_id = prepared.request_id
        collector = DirectCollector(vllm_id, partial(self._take, vllm_id))
        self._llm.output_processor.add_request(prepared, None, None, 0, collector)
        try:
            self._llm.engine_core.add_request(prepared)
        except Exception:
            self._llm.output_processor.abort_requests([vllm_id], internal=True)
            raise
        self._waiting[vllm_id] = on_output
        self._schedule_step()

    async def stop(self, vllm_ids: list[str]) -> None:
        """Aborts requests before the next step."""
        if self.errored:
            return
        self._llm.abort_request(vllm_ids, internal=True)
        for vllm_id in vllm_ids:
            self._waiting.pop(vllm_id, None)

    async def add_lora(self, request: LoRARequest) -> object:
        """Loads an adapter, between two steps."""
        self._check_alive()
        return self._llm.add_lora(request)

    async def remove_lora(self, lora_id: int) -> object:
        """Unloads an adapter, between two steps."""
        self._check_alive()
        return self._llm.remove_lora(lora_id)

    async def close(self) -> None:
        """Stops the engine core after the current step."""
        if self._next is not None:
            self._next.cancel()
        await asyncio.to_thread(self._llm.engine_core.shutdown)

    def _check_alive(self) -> None:
        if self.errored:
            raise EngineDeadError

    def _schedule_step(self) -> None:
        """Schedules the next step after the callbacks that are ready now."""
        if self._next is None:
            self._next = self._loop.call_soon(self._step)

    def _step(self) -> None:
        """Runs one step. If it fails, all waiting requests end with EngineDeadError."""
        self._next = None
        try:
            self._llm.step()
        except Exception:  # noqa: BLE001 - the boundary to the engine
            _log.exception("engine_died")
            self.errored = True
            for vllm_id in tuple(self._waiting):
                self._take(vllm_id, EngineDeadError())
        outputs, self._outputs = self._outputs, []
        for on_output, output in outputs:
            on_output(output)
        self._steps.end_step(None)
        if not self.errored and self._llm.has_unfinished_requests():
            self._schedule_step()

    def _take(self, vllm_id: str, output: RequestOutput | PoolingRequestOutput | Exception) -> None:
        on_output = self._waiting.get(vllm_id)
        if on_output is None:
            return
        if getattr(output, "finished", True):
            del self._waiting[vllm_id]
        self._outputs.append((on_output, output))
