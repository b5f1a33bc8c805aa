"""The reports of a replica's prefix cache, applied to a block index as the router does."""

from collections.abc import Callable

import pytest

from neox_serve.core.prefix_cache.block_index import BlockIndex
from neox_serve.core.prefix_cache.block_ledger import BlockLedger
from neox_serve.internal.v1 import router_link_pb2 as pb
from neox_serve.replica.block_reporter import MESSAGE_BLOCKS, BlockReporter
from neox_serve.wire import replica_messages


class Router:
    """Applies messages to an index; those sent while `deaf` is set are lost."""

    def __init__(self) -> None:
        self.index = BlockIndex()
        self.deaf = False
        self.full_reports_requested = 0

    def hear(self, message: pb.ConnectReplicaRequest) -> None:
        if not self.deaf:
            self.full_reports_requested += not self.index.take("r", replica_messages.block_news_from_proto(message.block_news))


def at_once(action: Callable[[], None]) -> None:
    action()


def test_changes_before_registration_are_in_the_full_report() -> None:
    router, ledger = Router(), BlockLedger(32)
    reporter = BlockReporter(ledger, router.hear, at_once)
    assert reporter.block_tokens == 32
    ledger.change(stored=[1, 2])
    assert router.index.blocks_on("r") == 0
    reporter.report_all()
    ledger.change(stored=[3], removed=[1])
    assert (router.index.blocks_on("r"), router.full_reports_requested) == (2, 0)
    assert router.index.look_up([2]).blocks("r") == 1


@pytest.mark.parametrize("blocks", [0, 1, MESSAGE_BLOCKS, MESSAGE_BLOCKS + 1, 3 * MESSAGE_BLOCKS])
def test_large_cache_is_reported_in_several_messages(blocks: int) -> None:
    router, ledger = Router(), BlockLedger(32)
    reporter = BlockReporter(ledger, router.hear, at_once)
    ledger.change(stored=range(blocks))
    reporter.report_all()
    ledger.change(stored=[-1 % 2**64])
    assert (router.index.blocks_on("r"), router.full_reports_requested) == (blocks + 1, 0)


def test_lost_message_is_noticed_and_followed_by_a_full_report() -> None:
    router, ledger = Router(), BlockLedger(32)
    reporter = BlockReporter(ledger, router.hear, at_once)
    reporter.report_all()
    router.deaf = True
    ledger.change(stored=[1])
    router.deaf = False
    ledger.change(stored=[2])
    assert (router.index.blocks_on("r"), router.full_reports_requested) == (0, 1)
    reporter.report_all()
    assert (router.index.blocks_on("r"), router.full_reports_requested) == (2, 1)


def test_nothing_is_reported_after_the_stream_has_ended() -> None:
    router, ledger = Router(), BlockLedger(32)
    reporter = BlockReporter(ledger, router.hear, at_once)
    reporter.report_all()
    reporter.stop()
    ledger.change(stored=[1])
    assert router.index.blocks_on("r") == 0


def test_engine_without_a_ledger_reports_nothing() -> None:
    router = Router()
    reporter = BlockReporter(None, router.hear, at_once)
    reporter.report_all()
    assert (reporter.block_tokens, router.index.blocks_on("r"), router.full_reports_requested) == (0, 0, 0)


def test_changes_within_the_delay_are_sent_as_one_message_with_the_final_state() -> None:
    router, ledger = Router(), BlockLedger(32)
    waiting: list[Callable[[], None]] = []
    reporter = BlockReporter(ledger, router.hear, waiting.append)
    ledger.change(stored=[1, 2])
    reporter.report_all()
    ledger.change(stored=[3, 4], removed=[1])
    ledger.change(stored=[1], removed=[2, 3])
    assert (len(waiting), router.index.blocks_on("r")) == (1, 2)
    waiting.pop()()
    there = {block for block in range(1, 5) if router.index.look_up([block]).blocks("r")}
    assert (there, router.index.blocks_on("r"), router.full_reports_requested) == ({1, 4}, 2, 0)
    ledger.change(stored=[5])
    assert len(waiting) == 1


def test_changes_that_wait_during_a_full_report_are_not_reported_again() -> None:
    sent: list[pb.ConnectReplicaRequest] = []
    waiting: list[Callable[[], None]] = []
    ledger = BlockLedger(32)
    reporter = BlockReporter(ledger, sent.append, waiting.append)
    reporter.report_all()
    ledger.change(stored=[1])
    reporter.report_all()
    waiting.pop()()
    assert [list(message.block_news.stored) for message in sent] == [[], [1]]
