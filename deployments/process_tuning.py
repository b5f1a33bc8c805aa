"""Tuning of a serving process after everything is loaded and before it serves requests."""

import gc
import os
from contextlib import suppress


def tune_process() -> None:
    """Excludes permanent objects from garbage collection, and lowers the scheduling priority of this process below that of models."""
    # A full collection of Ray's, vLLM's and our modules stops every stream for 50 to 80 ms. Frozen objects are not scanned.
    gc.collect()
    gc.freeze()
    _use_batch_scheduling()


def _use_batch_scheduling() -> None:
    """Sets SCHED_BATCH for all threads: they keep their share of the CPU, but do not preempt a running thread when they wake up.

    A model's threads wait for each other at every layer. If one of them were preempted to handle a message that can wait a millisecond, the
    whole batch would wait.
    """
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # the thread has just ended
            os.sched_setscheduler(int(thread), os.SCHED_BATCH, os.sched_param(0))
