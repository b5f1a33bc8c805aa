"""What a serving process does once all is loaded and it is about to serve."""

import gc
import os
from contextlib import suppress


def tune_process() -> None:
    """Keeps the garbage collector away from what lives as long as the process does, and this process off cores that a model computes on."""
    # A full collection over Ray's, vLLM's and our modules stops every stream for 50 to 80 ms; after this it passes over them.
    gc.collect()
    gc.freeze()
    _queue_behind_models()


def _queue_behind_models() -> None:
    """Makes all threads batch threads: they have their share of the machine, but a wake-up of theirs stops nothing that runs.

    A model's threads wait for each other at every layer. Stopped in the midst of one for a message that can wait a millisecond, the whole
    batch waits.
    """
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has just ended
            os.sched_setscheduler(int(thread), os.SCHED_BATCH, os.sched_param(0))
