"""LoRA adapters of a vLLM engine, loaded when a request first names them.

Each is fetched, checked and loaded by itself before its first request is submitted, so that a broken one fails the requests that name it
and nothing else: vLLM's engine core ends where loading fails in the midst of a step.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import structlog
from vllm.lora.request import LoRARequest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.engine.adapter_checks import check_adapter
from neox_serve.engine.adapter_slots import AdapterSlots
from neox_serve.engine.vllm.ports import Port
from neox_serve.model import model_files
from neox_serve.model.adapter_registry import AdapterRegistry
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import SettingsError
from neox_serve.settings.engines import AdapterSettings, ModelSettings

_log = structlog.get_logger(__name__)

InUse = Callable[[], Collection[str]]


@dataclass(frozen=True, slots=True)
class AdapterRules:
    """What an adapter must fit. cache: where those that are not local are copied to."""

    facts: ModelFacts
    max_rank: int
    max_loaded: int
    cache: Path


class VllmAdapters:
    """The adapters that may be named."""

    def __init__(self, port: Port, model: ModelSettings, rules: AdapterRules) -> None:
        self._port = port
        self._rules = rules
        self._settings: Mapping[str, AdapterSettings] = {adapter.name: adapter for adapter in model.adapters}
        self._registry = AdapterRegistry(model.registry)
        # vLLM numbers adapters from 1.
        self._numbers: defaultdict[str, int] = defaultdict(count(1).__next__)
        self._requests: dict[str, LoRARequest] = {}
        self._slots = AdapterSlots(rules.max_loaded, [adapter.name for adapter in model.adapters if adapter.pinned])
        self._turn = asyncio.Lock()

    @property
    def loaded(self) -> frozenset[str]:
        """Adapters that need not be loaded first."""
        return self._slots.loaded

    async def use(self, name: str | None, in_use: InUse) -> LoRARequest | None:
        """The adapter for a request, loaded. in_use: those that running requests name.

        Raises ServeError: UNKNOWN_ADAPTER, BROKEN_ADAPTER, OVERLOADED.
        """
        if name is None:
            return None
        if name not in self._slots.loaded and self._source(name) is None:
            raise ServeError(Reason.UNKNOWN_ADAPTER, f"adapter {name!r} is not served", {"adapter": name})
        if name not in self._slots.loaded:
            async with self._turn:
                await self._load(name, in_use)
        self._slots.use(name, ())
        return self._requests[name]

    async def load_pinned(self) -> None:
        """Loads the pinned ones; a broken one is logged."""
        for adapter in self._settings.values():
            if adapter.pinned:
                try:
                    await self.use(adapter.name, frozenset)
                except ServeError as error:
                    _log.error("pinned adapter not loaded", adapter=adapter.name, failure=error.message)

    async def _load(self, name: str, in_use: InUse) -> None:
        """Loads one, unless that has just happened."""
        if name in self._slots.loaded:
            return
        folder = await asyncio.to_thread(self._checked_folder, name)
        step = self._slots.use(name, in_use())
        if step is not None and step.evict is not None:
            await self._port.remove_lora(self._numbers[step.evict])
            self._slots.remove(step.evict)
            _log.info("adapter unloaded", adapter=step.evict)
        request = LoRARequest(name, self._numbers[name], str(folder))
        try:
            await self._port.add_lora(request)
        except Exception as error:
            raise _broken(name, f"vLLM cannot load it: {error}") from error
        self._requests[name] = request
        self._slots.put(name)
        _log.info("adapter loaded", adapter=name)

    def _source(self, name: str) -> str | None:
        """Where an adapter's folder is; None where there is no such adapter."""
        if name in self._settings:
            return self._settings[name].path
        found = self._registry.find(name)
        return str(found) if found else None

    def _checked_folder(self, name: str) -> Path:
        setting = f"adapter {name!r}"
        try:
            folder = model_files.locate_adapter(self._source(name) or "", setting=setting, cache=self._rules.cache)
            problems = list(check_adapter(folder, self._rules.facts, self._rules.max_rank, setting))
        except SettingsError as error:
            raise _broken(name, str(error)) from error
        if problems:
            raise _broken(name, "; ".join(problems))
        return folder


def _broken(name: str, cause: str) -> ServeError:
    _log.error("adapter cannot be used", adapter=name, failure=cause)
    return ServeError(Reason.BROKEN_ADAPTER, f"adapter {name!r} cannot be used; its owner must mend it", {"adapter": name})
