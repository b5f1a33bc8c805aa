"""Decides which adapters an engine keeps loaded: a fixed number, from which the least recently used is unloaded first.

Pinned adapters are never unloaded. Neither are adapters that running requests use, because they would have to be loaded again.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from neox_serve.core.errors import Reason, ServeError

_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """The decision to load an adapter."""

    evict: str | None = None
    """Adapter to unload first; None if there is a free slot."""


class AdapterSlots:
    """The slots of one engine."""

    def __init__(self, slots: int, pinned: Collection[str] = ()) -> None:
        self._slots = slots
        self._pinned = frozenset(pinned)
        self._loaded: OrderedDict[str, None] = OrderedDict()

    @property
    def loaded(self) -> frozenset[str]:
        """The loaded adapters."""
        return frozenset(self._loaded)

    def use(self, name: str, in_use: Collection[str]) -> Load | None:
        """Returns what must be done before a request may use an adapter; None if it is loaded. `in_use`: adapters of running requests.

        Raises OVERLOADED if all slots are occupied by adapters that must not be unloaded.
        """
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return None
        if len(self._loaded) < self._slots:
            return Load()
        evict = next((other for other in self._loaded if other not in self._pinned and other not in in_use), None)
        if evict is None:
            message = f"all {self._slots} adapter slots are occupied by pinned adapters and adapters of running requests"
            raise ServeError(Reason.OVERLOADED, message, {"adapter": name}, _RETRY_S)
        return Load(evict)

    def put(self, name: str) -> None:
        """Records that an adapter has been loaded."""
        self._loaded[name] = None

    def remove(self, name: str) -> None:
        """Records that an adapter has been unloaded."""
        self._loaded.pop(name, None)
