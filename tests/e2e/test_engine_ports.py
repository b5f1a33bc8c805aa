"""The port to an engine core on a thread, over a scripted engine: what goes wrong there is told to those whom it concerns."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from neox_serve.engine.vllm_ports import ThreadPort
from neox_serve.engine.vllm_steps import StepSignal

pytestmark = pytest.mark.e2e


@dataclass
class ScriptedLlm:
    """Answers every request in one step; refuses those named "bad", and dies of those named "deadly"."""

    collectors: dict[str, Any] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    input_processor: Any = None

    @property
    def output_processor(self) -> Any:
        return SimpleNamespace(add_request=self._enter, abort_requests=self._abort)

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
        if "deadly" in self.collectors:
            raise ValueError("out of memory")
        for name in tuple(self.collectors):
            self.collectors.pop(name).put(SimpleNamespace(finished=True, name=name))

    def _enter(self, prepared: Any, _prompt: None, _parent: None, _index: int, collector: Any) -> None:
        self.collectors[prepared.request_id] = collector

    def _admit(self, prepared: Any) -> None:
        if prepared.request_id == "bad":
            raise ValueError("cannot be followed")

    def _abort(self, vllm_ids: list[str], *, internal: bool) -> list[str]:
        assert internal
        for vllm_id in vllm_ids:
            self.collectors.pop(vllm_id, None)
        self.aborted += vllm_ids
        return vllm_ids


async def asked(port: ThreadPort, name: str) -> Any:
    """What comes of a request."""
    came: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    await port.submit(SimpleNamespace(request_id=name), came.set_result)
    async with asyncio.timeout(10):
        return await came


async def test_request_that_cannot_be_admitted_fails_alone() -> None:
    llm, steps = ScriptedLlm(), StepSignal()
    ends: list[object] = []
    steps.connect(ends.append)
    port = ThreadPort(llm, steps)
    good, bad, other = await asyncio.gather(*(asked(port, name) for name in ("good", "bad", "other")))
    assert (good.name, str(bad), other.name) == ("good", "cannot be followed", "other")
    assert (llm.aborted, port.errored, ends != []) == (["bad"], False, True)
    assert (await port.add_lora("fine")) is True
    with pytest.raises(ValueError, match="no such file"):
        await port.add_lora("broken")
    await port.close()


async def test_dead_engine_is_told_to_all_who_wait_and_who_come_later() -> None:
    port = ThreadPort(ScriptedLlm(), StepSignal())
    assert isinstance(await asked(port, "deadly"), EngineDeadError)
    assert port.errored
    assert isinstance(await asked(port, "late"), EngineDeadError)
    with pytest.raises(EngineDeadError):
        await port.add_lora("fine")
    await port.close()
