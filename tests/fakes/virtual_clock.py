"""Time that passes only when someone waits for it."""

import asyncio

from neox_serve.engine.fake.engine import Clock


class VirtualClock:
    """Waiting returns at once and advances `time_s`. For one waiter at a time."""

    def __init__(self) -> None:
        self.time_s = 0.0

    async def sleep(self, delay_s: float) -> None:
        """Advances the time and lets other tasks run."""
        self.time_s += delay_s
        await asyncio.sleep(0)

    @property
    def clock(self) -> Clock:
        """What the fake engine takes."""
        return Clock(lambda: self.time_s, self.sleep)
