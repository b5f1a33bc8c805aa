"""The registry of adapters: a folder in which fine-tuning jobs publish, and which gateways and engines look into while they run.

REGISTRY/NAME is an adapter for all, REGISTRY/TENANT/NAME one of a tenant's; each is a folder in PEFT's form. They are put there whole and
never changed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONFIG = "adapter_config.json"


class AdapterRegistry:
    """folder: None where there is no registry."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder.expanduser() if folder else None
        self.current: tuple[str, ...] = ()

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self._folder is not None

    def refresh(self) -> None:
        """Reads the names of all that is there. Raises OSError."""
        self.current = tuple(sorted(self._names())) if self._folder else ()

    def find(self, name: str) -> Path | None:
        """The folder of an adapter; None where there is none of that name."""
        segments = name.split("/")
        if self._folder is None or len(segments) > 2 or not all(_SEGMENT.fullmatch(segment) for segment in segments):
            return None
        folder = self._folder.joinpath(*segments)
        return folder if (folder / _CONFIG).is_file() else None

    def _names(self) -> Iterator[str]:
        for folder in self._subfolders(self._folder):
            if (folder / _CONFIG).is_file():
                yield folder.name
            yield from (f"{folder.name}/{one.name}" for one in self._subfolders(folder) if (one / _CONFIG).is_file())

    def _subfolders(self, folder: Path | None) -> Iterator[Path]:
        if folder is not None and folder.is_dir():
            yield from (one for one in folder.iterdir() if _SEGMENT.fullmatch(one.name) and one.is_dir())


@dataclass(frozen=True, slots=True)
class KnownAdapters:
    """Whether there is an adapter of a name: by `in`."""

    configured: frozenset[str]
    registry: AdapterRegistry

    def __contains__(self, name: object) -> bool:
        return name in self.configured or (isinstance(name, str) and self.registry.find(name) is not None)
