"""The adapter registry: a folder in which fine-tuning jobs publish adapters and which gateways and engines read while they run.

REGISTRY/NAME is an adapter for all tenants, REGISTRY/TENANT/NAME belongs to one tenant. Each is a folder in PEFT's format. Adapters appear
complete and never change.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONFIG = "adapter_config.json"


class AdapterRegistry:
    """The adapters in the registry folder."""

    def __init__(self, folder: Path | None) -> None:
        """folder: None if no registry is configured."""
        self._folder = folder.expanduser() if folder else None
        self.current: tuple[str, ...] = ()
        """Names of the adapters at the last refresh, sorted."""

    @property
    def exists(self) -> bool:
        """Whether a registry is configured."""
        return self._folder is not None

    def refresh(self) -> None:
        """Reads the names of all adapters. Raises OSError."""
        self.current = tuple(sorted(self._names())) if self._folder else ()

    def find(self, name: str) -> Path | None:
        """Returns the folder of an adapter, or None if there is no adapter with this name."""
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
    """The adapters that exist. Use `name in known` to check for one."""

    configured: frozenset[str]
    """Names of the adapters in the settings."""
    registry: AdapterRegistry

    def __contains__(self, name: object) -> bool:
        return name in self.configured or (isinstance(name, str) and self.registry.find(name) is not None)
