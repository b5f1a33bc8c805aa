"""Stops vLLM's processes and removes their shared memory, whatever state they are in."""

import asyncio
import os
from multiprocessing import resource_tracker
from pathlib import Path

import psutil
from vllm.v1.engine.async_llm import AsyncLLM

_GRACE_S = 20.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the kernel shows shared memory, no temporary file of ours

_TRACKED = {"psm_": ("shared_memory", ""), "sem.mp-": ("semaphore", "sem.")}
"""By name prefix of Python's multiprocessing ("psm_" for SharedMemory, "sem.mp-" for locks): the resource tracker's name of the kind, and
the beginning of the name that the tracker omits."""


class EngineProcesses:
    """The engine core, its descendants, and the shared memory that they use, recorded while all of them run."""

    def __init__(self, llm: AsyncLLM) -> None:
        manager = llm.engine_core.resources.engine_manager
        cores = [psutil.Process(process.pid) for process in manager.processes] if manager is not None else []
        self._processes = [process for core in cores for process in (core, *core.children(recursive=True))]
        self._segments = frozenset(segment for process in self._processes for segment in _segments(process))

    async def stop(self, llm: AsyncLLM) -> None:
        """Shuts everything down, kills processes that do not exit, and removes their shared memory. Call it on the engine's loop."""
        if llm.output_handler is not None:
            # Otherwise it would log the engine core's planned exit as a crash.
            llm.output_handler.cancel()
        context = llm.engine_core.resources.ctx
        await asyncio.to_thread(llm.shutdown, _GRACE_S)
        await asyncio.to_thread(self._end)
        # vLLM closes its sockets in a callback on this loop, which has run by now, but not the context.
        context.destroy(linger=0)

    def _end(self) -> None:
        _, alive = psutil.wait_procs(self._processes, timeout=_GRACE_S)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=_GRACE_S)
        for segment in self._segments:
            _remove(segment)


def _segments(process: psutil.Process) -> set[str]:
    """Returns the names of the shared memory that a process has mapped.

    They are found by inode, because the creator of a semaphore maps it under a temporary name.
    """
    maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace")
    mapped = (line.split(maxsplit=5) for line in maps.splitlines())
    inodes = {int(fields[4]) for fields in mapped if fields[-1].startswith(f"{_SHARED_MEMORY}/")}
    with os.scandir(_SHARED_MEMORY) as segments:
        return {segment.name for segment in segments if segment.inode() in inodes}


def _remove(segment: str) -> None:
    """Removes shared memory that a killed process left, and unregisters it from the resource tracker."""
    path = _SHARED_MEMORY / segment
    if not path.exists():
        return
    path.unlink(missing_ok=True)
    for prefix, (kind, dropped) in _TRACKED.items():
        if segment.startswith(prefix):
            resource_tracker.unregister(f"/{segment.removeprefix(dropped)}", kind)
