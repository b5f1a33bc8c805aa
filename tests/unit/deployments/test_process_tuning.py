"""What a serving process does before it serves."""

import subprocess
import sys

SETTLED = """
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


def test_settled_process_is_a_batch_process_with_all_its_threads_and_its_modules_frozen() -> None:
    done = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
