"""How requests reach vLLM's engine core, and outputs come back: from a process of its own, or from a thread of this one.

The process leaves this one's interpreter to those who read along. The thread spares what passing every step between processes costs, which
on CPUs the engine core's own computing pays for; it is for requests that nobody reads along.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.llm_engine import LLMEngine

from neox_serve.engine.vllm_process import EngineProcesses
from neox_serve.engine.vllm_steps import DirectCollector, OnOutput, StepSignal

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


@dataclass(frozen=True, slots=True)
class _Work:
    """For the engine's thread. fail: told why it could not be done."""

    do: Callable[[], object]
    fail: Callable[[Exception], object] = lambda _error: None

    def run(self) -> None:
        """Does it. What goes wrong is this work's alone."""
        try:
            self.do()
        except Exception as error:  # noqa: BLE001 - the boundary to the engine: whatever it raises is told to whoever asked
            self.fail(error)


class ThreadPort:
    """To an LLMEngine, on a thread that alone touches it, and so takes what it is told between two steps."""

    def __init__(self, llm: LLMEngine, steps: StepSignal) -> None:
        self._llm = llm
        self._steps = steps
        self._loop = asyncio.get_running_loop()
        self._work: deque[_Work] = deque()
        self._told = threading.Event()
        self._news: list[tuple[OnOutput, RequestOutput | PoolingRequestOutput | Exception]] = []
        self._waiting: dict[str, OnOutput] = {}
        self._closing = False
        self.errored = False
        self.input_processor = llm.input_processor
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def submit(self, prepared: EngineCoreRequest, on_output: OnOutput) -> None:
        """Outputs come once their step is over; what is wrong with a request comes as its output."""
        vllm_id = prepared.request_id
        self._waiting[vllm_id] = on_output

        def add() -> None:
            collector = DirectCollector(vllm_id, lambda output: self._take(vllm_id, output))
            self._llm.output_processor.add_request(prepared, None, None, 0, collector)
            self._llm.engine_core.add_request(prepared)

        def fail(error: Exception) -> None:
            self._take(vllm_id, error)
            self._llm.output_processor.abort_requests([vllm_id], internal=True)

        self._tell(_Work(add, fail))

    async def stop(self, vllm_ids: list[str]) -> None:
        """Before the next step."""

        def abort() -> None:
            self._llm.abort_request(vllm_ids, internal=True)
            for vllm_id in vllm_ids:
                self._waiting.pop(vllm_id, None)

        self._tell(_Work(abort))

    async def add_lora(self, request: LoRARequest) -> object:
        """Between two steps."""
        return await self._done(lambda: self._llm.add_lora(request))

    async def remove_lora(self, number: int) -> object:
        """Likewise."""
        return await self._done(lambda: self._llm.remove_lora(number))

    async def close(self) -> None:
        """The thread first, then the engine."""
        self._closing = True
        self._told.set()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._llm.engine_core.shutdown)

    def _tell(self, work: _Work) -> None:
        self._work.append(work)
        self._told.set()
        if self.errored:
            self._die()

    async def _done(self, work: Callable[[], object]) -> object:
        """What the thread has made of it."""
        done: Future[object] = Future()
        self._tell(_Work(lambda: done.set_result(work()), done.set_exception))
        return await asyncio.wrap_future(done)

    def _run(self) -> None:
        """Turns, until it is closed or the engine dies."""
        try:
            while not self._closing:
                self._turn()
        except Exception:  # noqa: BLE001 - the boundary to the engine
            _log.exception("engine died")
            self._loop.call_soon_threadsafe(self._die)

    def _turn(self) -> None:
        """What has been told, then a step; where there is nothing to step for, a wait."""
        self._told.clear()
        while self._work:
            self._work.popleft().run()
        if self._llm.has_unfinished_requests():
            self._llm.step()
            self._flush()
        else:
            self._flush()
            self._told.wait()

    def _die(self) -> None:
        """On the loop, once the thread has ended: whatever was the matter, all who wait hear that the engine is dead."""
        self.errored = True
        while self._work:
            self._work.popleft().fail(EngineDeadError())
        for vllm_id in tuple(self._waiting):
            self._take(vllm_id, EngineDeadError())
        self._flush()

    def _take(self, vllm_id: str, output: RequestOutput | PoolingRequestOutput | Exception) -> None:
        on_output = self._waiting.get(vllm_id)
        if on_output is None:
            return
        if getattr(output, "finished", True):
            del self._waiting[vllm_id]
        self._news.append((on_output, output))

    def _flush(self) -> None:
        if self._news:
            news, self._news = self._news, []
            self._loop.call_soon_threadsafe(self._pass_on, news)

    def _pass_on(self, news: list[tuple[OnOutput, Any]]) -> None:
        for on_output, output in news:
            on_output(output)
        self._steps.end_step(None)
