"""Collecting the deltas of a generation, whether it finishes or the deadline cuts it off."""

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import Delta, Finish, FinishReason, PromptFacts, SequenceDelta
from neox_serve.gateway.requests.collecting import PromptCollector, StreamProgress
from neox_serve.gateway.server.calls import TokenCount
from neox_serve.v1 import generation_pb2

STOP = Finish(FinishReason.STOP)


def test_unfinished_completions_report_the_deadline() -> None:
    collector = PromptCollector(2)
    collector.take([Delta("k", (SequenceDelta(0, "a", (1,), finish=STOP), SequenceDelta(1, "b", (2,))), PromptFacts(3))])
    result = collector.message()
    reasons = [completion.finish.reason for completion in result.completions]
    assert reasons == [generation_pb2.FINISH_REASON_STOP, generation_pb2.FINISH_REASON_DEADLINE]
    assert [completion.text for completion in result.completions] == ["a", "b"]
    assert (result.usage.completion_tokens, result.usage.cached_tokens) == (2, 3)


def test_end_with_unfinished_completions_is_an_internal_error() -> None:
    progress = StreamProgress(2, TokenCount())
    with pytest.raises(ServeError) as caught:
        progress.take([Delta("k", (SequenceDelta(0, "", (), finish=STOP),), end=True)])
    assert caught.value.reason is Reason.INTERNAL


def test_failure_in_the_last_delta_is_raised() -> None:
    lost = ServeError(Reason.REPLICA_LOST, "gone")
    with pytest.raises(ServeError, match="gone"):
        StreamProgress(1, TokenCount()).take([Delta("k", end=True, failure=lost)])
