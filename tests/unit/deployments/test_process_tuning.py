"""Tuning of a serving process."""

import subprocess
import sys

TUNED_PROCESS = """
import gc, os, threading
from deployments.process_tuning import tune_process

threading.Thread(target=threading.Event().wait, daemon=True).start()
tune_process()
later = threading.Thread(target=threading.Event().wait, daemon=True)
later.start()
threads = [int(thread) for thread in os.listdir("/proc/self/task")]
assert len(threads) >= 3, threads
assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}
assert gc.get_freeze_count() > 0
assert gc.isenabled()
"""


def test_tune_process_sets_batch_scheduling_of_all_threads_and_freezes_objects() -> None:
    done = subprocess.run([sys.executable, "-c", TUNED_PROCESS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
