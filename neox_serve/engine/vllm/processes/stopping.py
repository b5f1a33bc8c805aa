"""Stopping vLLM's processes so that nothing of them is left, whatever state they are in."""

import asyncio
import os
from multiprocessing import resource_tracker
from pathlib import Path

import psutil
from vllm.v1.engine.async_llm import AsyncLLM

_GRACE_S = 20.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the kernel shows shared memory, no temporary file of ours

# Names as Python's multiprocessing makes them, which its resource tracker knows: "psm_" of SharedMemory, "sem.mp-" of locks.
_TRACKED = {"psm_": ("shared_memory", ""), "sem.mp-": ("semaphore", "sem.")}


class EngineProcesses:
    """The engine core, everything below it, and the shared memory they use, as found while all were well."""

    def __init__(self, llm: AsyncLLM) -> None:
        manager = llm.engine_core.resources.engine_manager
        cores = [psutil.Process(process.pid) for process in manager.processes] if manager is not None else []
        self._processes = [process for core in cores for process in (core, *core.children(recursive=True))]
        self._segments = frozenset(segment for process in self._processes for segment in _segments(process))

    async def stop(self, llm: AsyncLLM) -> None:
        """Shuts everything down, kills what does not go, and removes shared memory that killed processes left. On the engine's loop."""
        if llm.output_handler is not None:
            # Else it takes the engine core's planned end for a crash and logs it as one.
            llm.output_handler.cancel()
        context = llm.engine_core.resources.ctx
        await asyncio.to_thread(llm.shutdown, _GRACE_S)
        await asyncio.to_thread(self._end)
        # vLLM closes its sockets in a callback on this loop, which has run by now, and leaves the context open.
        context.destroy(linger=0)

    def _end(self) -> None:
        _, alive = psutil.wait_procs(self._processes, timeout=_GRACE_S)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=_GRACE_S)
        for segment in self._segments:
            _remove(segment)


def _segments(process: psutil.Process) -> set[str]:
    """Names of the shared memory that a process has mapped; by inode, since whoever makes a semaphore maps it under a passing name."""
    maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace")
    mapped = (line.split(maxsplit=5) for line in maps.splitlines())
    inodes = {int(fields[4]) for fields in mapped if fields[-1].startswith(f"{_SHARED_MEMORY}/")}
    with os.scandir(_SHARED_MEMORY) as segments:
        return {segment.name for segment in segments if segment.inode() in inodes}


def _remove(segment: str) -> None:
    """Removes what a process that was killed could not, and takes it off the list of what is to be removed at exit."""
    path = _SHARED_MEMORY / segment
    if not path.exists():
        return
    path.unlink(missing_ok=True)
    for prefix, (kind, dropped) in _TRACKED.items():
        if segment.startswith(prefix):
            resource_tracker.unregister(f"/{segment.removeprefix(dropped)}", kind)
