"""LoRA adapters of a vLLM engine, which are loaded when a request first names them.

Each adapter is fetched, checked and loaded before its first request is submitted, so that a broken adapter fails only the requests that
name it: vLLM's engine core dies if loading fails during a step.
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
    """Requirements that adapters must meet."""

    facts: ModelFacts
    """The base model."""
    max_rank: int
    max_loaded: int
    """Number of adapters that can be loaded at a time."""
    cache: Path
    """Folder that remote adapters are copied to."""


class VllmAdapters:
    """The adapters that requests can name."""

    def __init__(self, port: Port, model: ModelSettings, rules: AdapterRules) -> None:
        self._port = port
        self._rules = rules
        self._settings: Mapping[str, AdapterSettings] = {adapter.name: adapter for adapter in model.adapters}
        self._registry = AdapterRegistry(model.registry)
        # vLLM requires numbers of at least 1.
        self._numbers: defaultdict[str, int] = defaultdict(count(1).__next__)
        self._requests: dict[str, LoRARequest] = {}
        self._slots = AdapterSlots(rules.max_loaded, [adapter.name for adapter in model.adapters if adapter.pinned])
        self._load_lock = asyncio.Lock()

    @property
    def loaded(self) -> frozenset[str]:
        """The adapters that are loaded."""
        return self._slots.loaded

    async def use(self, name: str | None, in_use: InUse) -> LoRARequest | None:
        """Returns the adapter of a request, after loading it if necessary. `in_use` returns the adapters of running requests.

        Raises ServeError: UNKNOWN_ADAPTER, BROKEN_ADAPTER, OVERLOADED.
        """
        if name is None:
            return None
        if name not in self._slots.loaded and self._source(name) is None:
            raise ServeError(Reason.UNKNOWN_ADAPTER, f"adapter {name!r} is not served", {"adapter": name})
        if name not in self._slots.loaded:
            async with self._load_lock:
                await self._load(name, in_use)
        self._slots.use(name, ())
        return self._requests[name]

    async def load_pinned(self) -> None:
        """Loads the pinned adapters. A broken one is logged."""
        for adapter in self._settings.values():
            if adapter.pinned:
                try:
                    await self.use(adapter.name, frozenset)
                except ServeError as error:
                    _log.error("pinned_adapter_not_loaded", adapter=adapter.name, failure=error.message)

    async def _load(self, name: str, in_use: InUse) -> None:
        """Loads an adapter, unless another request has just loaded it."""
        if name in self._slots.loaded:
            return
        folder = await asyncio.to_thread(self._checked_folder, name)
        step = self._slots.use(name, in_use())
        if step is not None and step.evict is not None:
            await self._port.remove_lora(self._numbers[step.evict])
            self._slots.remove(step.evict)
            _log.info("adapter_unloaded", adapter=step.evict)
        request = LoRARequest(name, self._numbers[name], str(folder))
        try:
            await self._port.add_lora(request)
        except Exception as error:
            raise _broken(name, f"vLLM cannot load it: {error}") from error
        self._requests[name] = request
        self._slots.put(name)
        _log.info("adapter_loaded", adapter=name)

    def _source(self, name: str) -> str | None:
        """Returns the path or URL of an adapter; None if there is no such adapter."""
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
    _log.error("adapter_unusable", adapter=name, failure=cause)
    return ServeError(Reason.BROKEN_ADAPTER, f"adapter {name!r} cannot be used; its owner must fix it", {"adapter": name})
