"""How requests reach vLLM's engine core, and outputs come back: from a process of its own, or from this one's event loop.

The process leaves this one's interpreter to those who read along. The loop spares what passing every step between processes costs, which
on CPUs the engine core's own computing pays for; it is for requests that nobody reads along.
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
    """One engine core. Used on one event loop, on which outputs and the ends of steps are told."""

    @property
    def input_processor(self) -> InputProcessor:
        """Makes vLLM's requests."""

    @property
    def errored(self) -> bool:
        """Whether it is dead."""

    async def submit(self, prepared: EngineCoreRequest, on_output: OnOutput) -> None:
        """Queues a request."""

    async def stop(self, vllm_ids: list[str]) -> None:
        """Takes requests out. A dead engine has nothing to stop."""

    async def add_lora(self, request: LoRARequest) -> object:
        """Loads an adapter."""

    async def remove_lora(self, number: int) -> object:
        """Unloads one."""

    async def close(self) -> None:
        """Ends it, and whatever it has started."""


class ProcessPort:
    """To an AsyncLLM, whose engine core is a process."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._processes = EngineProcesses(llm)
        self.input_processor = llm.input_processor
        self.add_lora = llm.add_lora
        self.remove_lora = llm.remove_lora

    @property
    def errored(self) -> bool:
        """Whether vLLM says so."""
        return bool(self._llm.errored)

    async def submit(self, prepared: EngineCoreRequest, on_output: OnOutput) -> None:
        """Outputs come by vLLM's output handler."""
        self._llm.output_processor.add_request(prepared, None, None, 0, DirectCollector(prepared.request_id, on_output))
        await self._llm.engine_core.add_request_async(prepared)

    async def stop(self, vllm_ids: list[str]) -> None:
        """On both sides."""
        ids = self._llm.output_processor.abort_requests(vllm_ids, internal=True)
        if not self.errored:
            await self._llm.engine_core.abort_requests_async(list({*ids, *vllm_ids}))

    async def close(self) -> None:
        """Every process."""
        await self._processes.stop(self._llm)


class LoopPort:
    """To an LLMEngine that steps on the event loop itself: nothing else happens meanwhile, and between two steps whoever waits has a turn.

    So neither waits for the other's hold on the interpreter, which threads take and leave at every operation of a step.
    """

    def __init__(self, llm: LLMEngine, steps: StepSignal) -> None:
        self._llm = llm
        self._steps = steps
        self._loop = asyncio.get_running_loop()
        self._news: list[tuple[OnOutput, RequestOutput | PoolingRequestOutput | Exception]] = []
        self._waiting: dict[str, OnOutput] = {}
        self._next: asyncio.Handle | None = None
        self.errored = False
        self.input_processor = llm.input_processor

    async def submit(self, prepared: EngineCoreRequest, on_output: OnOutput) -> None:
        """Outputs come once their step is over."""
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
        self._plan_step()

    async def stop(self, vllm_ids: list[str]) -> None:
        """Before the next step."""
        if self.errored:
            return
        self._llm.abort_request(vllm_ids, internal=True)
        for vllm_id in vllm_ids:
            self._waiting.pop(vllm_id, None)

    async def add_lora(self, request: LoRARequest) -> object:
        """Between two steps."""
        self._check_alive()
        return self._llm.add_lora(request)

    async def remove_lora(self, number: int) -> object:
        """Likewise."""
        self._check_alive()
        return self._llm.remove_lora(number)

    async def close(self) -> None:
        """After the step that is being done."""
        if self._next is not None:
            self._next.cancel()
        await asyncio.to_thread(self._llm.engine_core.shutdown)

    def _check_alive(self) -> None:
        if self.errored:
            raise EngineDeadError

    def _plan_step(self) -> None:
        """After all that is ready to run now."""
        if self._next is None:
            self._next = self._loop.call_soon(self._step)

    def _step(self) -> None:
        """One step; where it fails, all who wait hear that the engine is dead."""
        self._next = None
        try:
            self._llm.step()
        except Exception:  # noqa: BLE001 - the boundary to the engine
            _log.exception("engine died")
            self.errored = True
            for vllm_id in tuple(self._waiting):
                self._take(vllm_id, EngineDeadError())
        news, self._news = self._news, []
        for on_output, output in news:
            on_output(output)
        self._steps.end_step(None)
        if not self.errored and self._llm.has_unfinished_requests():
            self._plan_step()

    def _take(self, vllm_id: str, output: RequestOutput | PoolingRequestOutput | Exception) -> None:
        on_output = self._waiting.get(vllm_id)
        if on_output is None:
            return
        if getattr(output, "finished", True):
            del self._waiting[vllm_id]
        self._news.append((on_output, output))
