"""Settlements of one turn of the event loop leave as one message."""

import asyncio
from collections.abc import Sequence

from neox_serve.gateway.dispatch.settlements import SettlementBatcher


class Sent:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.batcher = SettlementBatcher[int](self.send)

    def send(self, settled: Sequence[int]) -> None:
        self.batches.append(list(settled))


async def test_settlements_of_one_turn_are_sent_together() -> None:
    sent = Sent()
    for number in range(3):
        sent.batcher.add(number)
    assert sent.batches == []
    await asyncio.sleep(0)
    assert sent.batches == [[0, 1, 2]]
    sent.batcher.add(3)
    await asyncio.sleep(0)
    assert sent.batches == [[0, 1, 2], [3]]


async def test_flush_sends_at_once_and_the_turn_sends_nothing_more() -> None:
    sent = Sent()
    sent.batcher.add(1)
    sent.batcher.flush()
    assert sent.batches == [[1]]
    sent.batcher.flush()
    await asyncio.sleep(0)
    assert sent.batches == [[1]]


async def test_settlement_after_a_flush_in_the_same_turn_is_sent() -> None:
    sent = Sent()
    sent.batcher.add(1)
    sent.batcher.flush()
    sent.batcher.add(2)
    await asyncio.sleep(0)
    assert sent.batches == [[1], [2]]


async def test_discarded_settlements_are_not_sent() -> None:
    sent = Sent()
    sent.batcher.add(1)
    sent.batcher.discard()
    await asyncio.sleep(0)
    assert sent.batches == []
