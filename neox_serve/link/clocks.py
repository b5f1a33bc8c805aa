"""A clock for what is kept for people and between processes, and yet never goes back."""

import time
from collections.abc import Callable


def steady_wall_clock(clock: Callable[[], float] = time.monotonic) -> Callable[[], float]:
    """Seconds since the epoch as they were at first, and from then on by a steady clock."""
    offset_s = time.time() - clock()
    return lambda: offset_s + clock()
