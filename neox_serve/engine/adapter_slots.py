"""Which adapters an engine keeps loaded: as many as it has places for, the least recently used leaves first. Pure.

Pinned ones stay once they are loaded. One that running requests use is never unloaded, for they would have to load it again.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from neox_serve.core.errors import Reason, ServeError

_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """An adapter is to be loaded, after another was unloaded where one is named."""

    evict: str | None = None


class AdapterSlots:
    """The places of one engine."""

    def __init__(self, places: int, pinned: Collection[str] = ()) -> None:
        self._places = places
        self._pinned = frozenset(pinned)
        self._loaded: OrderedDict[str, None] = OrderedDict()

    @property
    def loaded(self) -> frozenset[str]:
        """Adapters in their places."""
        return frozenset(self._loaded)

    def use(self, name: str, in_use: Collection[str]) -> Load | None:
        """What must be done before a request may use an adapter; None: nothing. in_use: by requests that run.

        Raises OVERLOADED where all places are taken by adapters that must stay.
        """
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return None
        if len(self._loaded) < self._places:
            return Load()
        evict = next((other for other in self._loaded if other not in self._pinned and other not in in_use), None)
        if evict is None:
            message = f"all {self._places} places for adapters are taken by pinned ones and by running requests"
            raise ServeError(Reason.OVERLOADED, message, {"adapter": name}, _RETRY_S)
        return Load(evict)

    def put(self, name: str) -> None:
        """The adapter has been loaded."""
        self._loaded[name] = None

    def remove(self, name: str) -> None:
        """The adapter has been unloaded."""
        self._loaded.pop(name, None)
