"""Forks engine cores from a process that has already imported vLLM, which saves them the import.

vLLM can start its engine core by "fork", which is not safe in a process with threads, or by "spawn", which imports vLLM again. Python's
fork server is both safe and fast: it is a process without threads that imports vLLM while this process does.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any


class _Process(ForkServerProcess):
    """A process with the environment at the time of its creation, like a spawned process. The fork server's own environment is older."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._environment = dict(os.environ)

    def run(self) -> None:
        os.environ.update(self._environment)
        super().run()


class _Context(ForkServerContext):
    Process = _Process


@contextmanager
def importing_ahead() -> Iterator[None]:
    """Lets the fork server import what an engine core needs while the block imports vLLM. Afterwards vLLM forks its engine cores.

    The environment must contain what `engine_environment` returned.
    """
    os.environ["LD_PRELOAD"] = ":".join([*_libraries(), *filter(None, [os.environ.get("LD_PRELOAD")])])
    get_context("forkserver").set_forkserver_preload(["neox_serve.engine.vllm.processes.core_imports"])
    forkserver.ensure_running()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    from vllm.v1.engine import utils

    utils.get_mp_context = _Context


def _libraries() -> list[str]:
    """Returns the allocator and OpenMP libraries that vLLM preloads in its processes on CPUs, which a forked process cannot do.

    Source: `CpuPlatform.check_and_update_config`, which keeps libraries that LD_PRELOAD already names.
    """
    patterns = (("vllm", "libs/libtcmalloc*.so*"), ("torch", "../torch.libs/libgomp*.so*"), ("torch", "lib/libgomp*.so*"))
    found = [sorted(_package_folder(package).glob(pattern)) for package, pattern in patterns]
    return [str(paths[0]) for paths in found if paths]


def _package_folder(package: str) -> Path:
    """Returns the folder in which a package is installed, without importing it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
