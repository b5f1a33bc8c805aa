"""Running the parts of a call concurrently."""

import asyncio

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.gateway.requests.completing import side_by_side


async def test_first_failure_cancels_the_others_and_is_raised_by_itself() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def fail() -> None:
        raise ServeError(Reason.OVERLOADED, "full")

    with pytest.raises(ServeError, match="full"):
        await side_by_side([forever(), fail(), forever()])
    assert ended == ["cancelled", "cancelled"]
