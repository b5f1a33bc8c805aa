"""The connection to an engine core on the event loop, tested with a scripted engine: failures reach the requests that they concern."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from neox_serve.engine.vllm.ports import LoopPort
from neox_serve.engine.vllm.steps import StepSignal

pytestmark = pytest.mark.e2e


@dataclass
class ScriptedLlm:
    """Completes every request in one step, rejects the request "bad", and dies of the request "deadly"."""

    collectors: dict[str, Any] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    input_processor: Any = None

    @property
    def output_processor(self) -> Any:
        return SimpleNamespace(add_request=self._enter, abort_requests=self.abort_request)

    @property
    def engine_core(self) -> Any:
        return SimpleNamespace(add_request=self._admit, shutdown=self.collectors.clear)

    def has_unfinished_requests(self) -> bool:
        return bool(self.collectors)

    def add_lora(self, request: str) -> bool:
        if request == "broken":
            raise ValueError("no such file")
        return True

    def step(self) -> None:
        self.batches.append([*self.collectors])
        if "deadly" in self.collectors:
            raise ValueError("out of memory")
        for name in tuple(self.collectors):
            self.collectors.pop(name).put(SimpleNamespace(finished=True, name=name))

    def abort_request(self, vllm_ids: list[str], *, internal: bool) -> None:
        assert internal
        for vllm_id in vllm_ids:
            self.collectors.pop(vllm_id, None)
        self.aborted += vllm_ids

    def _enter(self, prepared: Any, _prompt: None, _parent: None, _index: int, collector: Any) -> None:
        self.collectors[prepared.request_id] = collector

    def _admit(self, prepared: Any) -> None:
        if prepared.request_id == "bad":
            raise ValueError("cannot be followed")


async def output_of(port: LoopPort, name: str) -> Any:
    """Returns the output of a request, or the exception."""
    output: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    await port.submit(SimpleNamespace(request_id=name), output.set_result)
    async with asyncio.timeout(10):
        return await output


async def test_requests_submitted_together_share_a_step() -> None:
    llm, steps = ScriptedLlm(), StepSignal()
    ends: list[object] = []
    steps.connect(ends.append)
    port = LoopPort(llm, steps)
    found = await asyncio.gather(*(output_of(port, name) for name in ("a", "b", "c")))
    assert [each.name for each in found] == ["a", "b", "c"]
    assert llm.batches == [["a", "b", "c"]]
    assert ends == [None]
    assert (await output_of(port, "d")).name == "d"
    assert llm.batches == [["a", "b", "c"], ["d"]]
    await port.close()


async def test_rejected_request_does_not_affect_others() -> None:
    llm = ScriptedLlm()
    port = LoopPort(llm, StepSignal())
    found = await asyncio.gather(*(output_of(port, name) for name in ("good", "bad", "other")), return_exceptions=True)
    assert [getattr(each, "name", str(each)) for each in found] == ["good", "cannot be followed", "other"]
    assert (llm.aborted, port.errored) == (["bad"], False)
    assert (await port.add_lora("fine")) is True
    with pytest.raises(ValueError, match="no such file"):
        await port.add_lora("broken")
    await port.close()


async def test_stopped_request_gets_no_output() -> None:
    llm, heard = ScriptedLlm(), list[Any]()
    port = LoopPort(llm, StepSignal())
    await port.submit(SimpleNamespace(request_id="stopped"), heard.append)
    await port.stop(["stopped"])
    assert (await output_of(port, "other")).name == "other"
    assert (heard, llm.aborted, llm.batches) == ([], ["stopped"], [["other"]])
    await port.close()


async def test_dead_engine_fails_waiting_and_later_requests() -> None:
    port = LoopPort(ScriptedLlm(), StepSignal())
    deadly, beside = await asyncio.gather(output_of(port, "deadly"), output_of(port, "beside"))
    assert isinstance(deadly, EngineDeadError)
    assert isinstance(beside, EngineDeadError)
    assert port.errored
    with pytest.raises(EngineDeadError):
        await output_of(port, "late")
    with pytest.raises(EngineDeadError):
        await port.add_lora("fine")
    await port.stop(["late"])
    await port.close()
