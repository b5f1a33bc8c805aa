"""Engine cores that are forked from a process which has imported vLLM already, instead of importing it anew.

vLLM knows two ways to start its engine core: "fork", which is not safe in a process with threads, and "spawn", which imports for as long as
its parent just did. Python's fork server is safe and quick: a process without threads that imports while this one does.
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
    """A process with the environment of the moment of its making, as a spawned one has it; that of the fork server is older."""

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
    """Has the fork server import what an engine core needs while the block imports vLLM; from then on vLLM's engine cores are forked.

    The environment must hold what `engine_environment` gave.
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
    """The allocator and the OpenMP that vLLM has its processes on CPUs load before all else; a fork cannot do that any more.

    Source: `CpuPlatform.check_and_update_config`, which leaves alone what is named already.
    """
    patterns = (("vllm", "libs/libtcmalloc*.so*"), ("torch", "../torch.libs/libgomp*.so*"), ("torch", "lib/libgomp*.so*"))
    found = [sorted(_package_folder(package).glob(pattern)) for package, pattern in patterns]
    return [str(paths[0]) for paths in found if paths]


def _package_folder(package: str) -> Path:
    """Where a package is installed, without importing it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
