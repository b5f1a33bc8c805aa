"""The contract of every engine about generation requests."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import (
    Beam,
    Choice,
    Finish,
    FinishReason,
    GenerationRequest,
    JsonSchema,
    PositionLogprobs,
    Sampling,
    Stopping,
    StructuredOutput,
)
from neox_serve.engine.detokenizer import TextStream
from tests.engines import MAX_NUM_SEQS, Subject
from tests.fakes.recording_sink import RecordingSink, ask, stopping

PROMPT = (286, 9, 89, 314, 200)
GREEDY = Sampling(temperature=0.0)
REQUEST = GenerationRequest("request", PROMPT, Stopping(max_tokens=16, ignore_eos=True), GREEDY)
LONG = stopping(REQUEST, max_tokens=1500)
CUT = Finish(FinishReason.LENGTH)


async def becomes_idle(tested: Subject) -> bool:
    """Returns whether the engine has no requests, after waiting up to a second."""
    for _ in range(100):
        stats = tested.engine.stats()
        if stats.running_requests == stats.waiting_requests == 0 and stats.kv_usage_fraction == 0:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_generate_delivers_every_token_and_exactly_one_end(generator: Subject) -> None:
    answer = await ask(generator.engine, REQUEST)
    assert len(answer.token_ids()) == 16
    assert [delta.end for delta in answer.deltas].count(True) == 1
    assert [part.finish for part in answer.parts() if part.finish] == [CUT]
    assert all(part.token_ids or part.text or part.finish for part in answer.parts())
    assert await becomes_idle(generator)


async def test_prompt_facts_are_in_the_first_delta_only(generator: Subject) -> None:
    answer = await ask(generator.engine, replace(REQUEST, n=2))
    assert [delta.prompt is not None for delta in answer.deltas] == [True] + [False] * (len(answer.deltas) - 1)


async def test_several_tokens_per_delta_are_the_same_tokens(generator: Subject) -> None:
    single = await ask(generator.engine, REQUEST)
    gathered = await ask(generator.engine, replace(REQUEST, tokens_per_delta=8))
    assert (gathered.token_ids(), gathered.text()) == (single.token_ids(), single.text())
    assert len(gathered.parts()) <= len(single.parts())
    assert len(gathered.parts()[0].token_ids) == 1, "the first token is delivered immediately"
    assert [part.finish for part in gathered.parts() if part.finish] == [CUT]


async def test_joined_text_equals_the_text_of_all_tokens(generator: Subject) -> None:
    answer = await ask(generator.engine, replace(REQUEST, sampling=Sampling(seed=5)))
    stream = TextStream(generator.table.text_bytes, REQUEST.stopping, PROMPT)
    assert answer.text() == stream.push(answer.token_ids()).text


async def test_step_calls_each_sink_once_with_one_delta_per_request(generator: Subject) -> None:
    first, second = RecordingSink(), RecordingSink()
    for number in range(MAX_NUM_SEQS):
        await generator.engine.generate(number, stopping(REQUEST, max_tokens=20), (first, second)[number % 2])
    for number in range(MAX_NUM_SEQS):
        await (first, second)[number % 2].until(number)
    for parity, sink in enumerate((first, second)):
        assert all(max(Counter(delta.key for delta in call).values()) == 1 for call in sink.calls)
        assert {delta.key for call in sink.calls for delta in call} == {n for n in range(MAX_NUM_SEQS) if n % 2 == parity}
        assert len(sink.calls) <= 20 + MAX_NUM_SEQS, "deltas of one step were delivered in several calls"


async def test_many_requests_at_once_all_end_exactly_once(generator: Subject) -> None:
    sink = RecordingSink()
    before = generator.engine.stats().output_tokens_total
    requests = {number: stopping(REQUEST, max_tokens=1 + number % 7) for number in range(5 * MAX_NUM_SEQS)}
    await asyncio.gather(*(generator.engine.generate(number, request, sink) for number, request in requests.items()))
    for number, request in requests.items():
        deltas = await sink.until(number)
        assert [delta.end for delta in deltas].count(True) == 1
        assert sum(len(part.token_ids) for delta in deltas for part in delta.sequences) == request.stopping.max_tokens
    assert await becomes_idle(generator)
    assert generator.engine.stats().output_tokens_total - before == sum(request.stopping.max_tokens for request in requests.values())


async def test_prompt_counts_as_prefill_backlog_until_the_first_output(generator: Subject) -> None:
    sink = RecordingSink()
    await generator.engine.generate("read", stopping(REQUEST, max_tokens=50), sink)
    assert generator.engine.stats().prefill_backlog_tokens == len(PROMPT)
    await sink.until("read", deltas=1)
    assert generator.engine.stats().prefill_backlog_tokens == 0
    await generator.engine.abort("read")


async def test_abort_stops_the_deltas_and_frees_the_request(generator: Subject) -> None:
    sink = RecordingSink()
    await generator.engine.generate("aborted", LONG, sink)
    await sink.until("aborted", deltas=3)
    await generator.engine.abort("aborted")
    delivered = len(sink.of("aborted"))
    await ask(generator.engine, REQUEST)
    assert len(sink.of("aborted")) == delivered
    assert not any(delta.end for delta in sink.of("aborted"))
    assert await becomes_idle(generator)


async def test_abort_before_the_first_token_delivers_nothing(generator: Subject) -> None:
    sink = RecordingSink()
    await generator.engine.generate("aborted", replace(LONG, n=3), sink)
    await generator.engine.abort("aborted")
    await ask(generator.engine, REQUEST)
    assert sink.of("aborted") == []
    assert await becomes_idle(generator)


async def test_abort_of_unknown_and_ended_requests_is_ignored(generator: Subject) -> None:
    await ask(generator.engine, REQUEST, "ended")
    await generator.engine.abort("ended")
    await generator.engine.abort("never seen")


async def test_abort_in_a_full_engine_lets_the_next_request_start_within_steps(generator: Subject) -> None:
    sink = RecordingSink()
    for number in range(MAX_NUM_SEQS):
        await generator.engine.generate(number, LONG, sink)
        await sink.until(number, deltas=1)
    await generator.engine.generate("next", REQUEST, sink)
    await sink.until(1, deltas=len(sink.of(1)) + 10)
    assert sink.of("next") == [], "the engine was not full"
    await generator.engine.abort(0)
    steps = len(sink.calls)
    await sink.until("next", deltas=1)
    assert len(sink.calls) - steps <= 8
    for number in range(1, MAX_NUM_SEQS):
        await generator.engine.abort(number)
    await sink.until("next")
    assert await becomes_idle(generator)


async def test_key_can_be_reused_after_the_request_has_ended(generator: Subject) -> None:
    first, second = await ask(generator.engine, REQUEST, "again"), await ask(generator.engine, REQUEST, "again")
    assert first.token_ids() == second.token_ids()


async def test_n_sequences_all_end_and_differ(generator: Subject) -> None:
    answer = await ask(generator.engine, replace(REQUEST, n=3, sampling=Sampling(temperature=1.0, seed=11)))
    assert {part.index for delta in answer.deltas for part in delta.sequences} == {0, 1, 2}
    for index in range(3):
        assert [part.finish for part in answer.parts(index) if part.finish] == [CUT]
        assert len(answer.token_ids(index)) == 16
    assert len({answer.token_ids(index) for index in range(3)}) == 3


async def test_seed_repeats_all_n_sequences(generator: Subject) -> None:
    request = replace(REQUEST, n=2, sampling=Sampling(temperature=1.0, seed=1234))
    first, second = await ask(generator.engine, request), await ask(generator.engine, request)
    assert [first.token_ids(index) for index in range(2)] == [second.token_ids(index) for index in range(2)]


async def test_greedy_sampling_with_n_is_supported(generator: Subject) -> None:
    answer = await ask(generator.engine, replace(REQUEST, n=2))
    assert len(answer.token_ids(0)) == len(answer.token_ids(1)) == 16


@pytest.mark.parametrize("include", [False, True])
async def test_stop_sequence_ends_the_text_at_its_first_occurrence(generator: Subject, include: bool) -> None:
    whole = (await ask(generator.engine, REQUEST)).text()
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    wanted = stopping(REQUEST, stop_sequences=("never in the text", stop), include_stop_in_output=include)
    answer = await ask(generator.engine, wanted)
    assert answer.text() == whole[: whole.index(stop) + (len(stop) if include else 0)]
    assert answer.parts()[-1].finish == Finish(FinishReason.STOP, stop)
    assert len(answer.token_ids()) < 16
    assert await becomes_idle(generator)


async def test_stop_sequence_ends_only_the_sequence_that_contains_it(generator: Subject) -> None:
    request = replace(stopping(REQUEST, max_tokens=30), n=3, sampling=Sampling(temperature=1.0, seed=21))
    whole = await ask(generator.engine, request)
    stop = whole.text(1)[10:14]
    answer = await ask(generator.engine, stopping(request, stop_sequences=(stop,)))
    for index in range(3):
        assert answer.text(index) == whole.text(index).partition(stop)[0]
        assert len([part for part in answer.parts(index) if part.finish]) == 1
    assert await becomes_idle(generator)


async def test_stop_token_ends_the_sequence_and_is_reported(generator: Subject) -> None:
    whole = await ask(generator.engine, REQUEST)
    stop = whole.token_ids()[5]
    answer = await ask(generator.engine, stopping(REQUEST, stop_token_ids=(stop,)))
    count = whole.token_ids().index(stop) + 1
    assert answer.token_ids() == whole.token_ids()[:count]
    assert answer.parts()[-1].finish == Finish(FinishReason.STOP, stop)
    assert whole.text().startswith(answer.text())
    included = await ask(generator.engine, stopping(REQUEST, stop_token_ids=(stop,), include_stop_in_output=True))
    assert len(included.text()) > len(answer.text())


async def test_end_of_text_ends_the_sequence_without_a_stop_reason(generator: Subject) -> None:
    request = stopping(replace(REQUEST, sampling=Sampling(temperature=0.0, logit_bias={generator.eos_token_id: 100.0})), ignore_eos=False)
    answer = await ask(generator.engine, request)
    assert (answer.token_ids(), answer.text(), answer.parts()[-1].finish) == ((generator.eos_token_id,), "", Finish(FinishReason.STOP))


async def test_min_tokens_delays_the_end_and_ignore_eos_prevents_it(generator: Subject) -> None:
    forced = replace(REQUEST, sampling=Sampling(temperature=0.0, logit_bias={generator.eos_token_id: 100.0}))
    late = await ask(generator.engine, stopping(forced, ignore_eos=False, min_tokens=3))
    assert len(late.token_ids()) == 4
    never = await ask(generator.engine, forced)
    assert (len(never.token_ids()), never.parts()[-1].finish) == (16, CUT)


def shape(position: PositionLogprobs) -> tuple[int, list[int]]:
    return len(position.alternatives), [token.rank for token in position.alternatives]


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_logprobs_contain_each_token_and_the_most_likely_alternatives(generator: Subject, count: int) -> None:
    answer = await ask(generator.engine, replace(REQUEST, logprobs=count))
    for part in answer.parts():
        assert [position.token.token_id for position in part.logprobs] == list(part.token_ids)
        for position in part.logprobs:
            assert shape(position) == (count, list(range(1, count + 1)))
            assert position.token.logprob <= 0
            assert position.token.rank == 1, "greedy sampling takes the most likely token"
            assert position.token.text == generator.table.display(position.token.token_id)
            likelihoods = [token.logprob for token in position.alternatives]
            assert likelihoods == sorted(likelihoods, reverse=True)


async def test_logprobs_are_absent_unless_requested(generator: Subject) -> None:
    answer = await ask(generator.engine, REQUEST)
    assert all(part.logprobs == () for part in answer.parts())
    assert answer.deltas[0].prompt is not None
    assert answer.deltas[0].prompt.logprobs == ()


async def test_prompt_logprobs_contain_each_prompt_token_except_the_first(generator: Subject) -> None:
    answer = await ask(generator.engine, replace(REQUEST, prompt_logprobs=2))
    assert answer.deltas[0].prompt is not None
    positions = answer.deltas[0].prompt.logprobs
    assert [position.token.token_id for position in positions] == list(PROMPT[1:])
    assert all(shape(position) == (2, [1, 2]) for position in positions)


async def test_beam_search_tells_the_best_texts_at_once(generator: Subject) -> None:
    answer = await ask(generator.engine, replace(REQUEST, beam=Beam(4, num_return=3), logprobs=1))
    assert len(answer.deltas) == 1
    (delta,) = answer.deltas
    assert [part.index for part in delta.sequences] == [0, 1, 2]
    scores = [part.score for part in delta.sequences if part.score is not None]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert all(part.finish is not None and len(part.logprobs) == len(part.token_ids) == 16 for part in delta.sequences)
    assert await becomes_idle(generator)


async def test_beam_search_can_be_aborted(generator: Subject) -> None:
    sink = RecordingSink()
    await generator.engine.generate("beams", replace(LONG, beam=Beam(2)), sink)
    await asyncio.sleep(0.05)
    await generator.engine.abort("beams")
    await ask(generator.engine, REQUEST)
    assert sink.of("beams") == []
    assert await becomes_idle(generator)


@pytest.mark.parametrize(
    ("structured_output", "field"),
    [
        (JsonSchema("{"), "json_schema"),
        (JsonSchema("[1]"), "json_schema"),
        (JsonSchema(""), "json_schema"),
        (Choice(()), "choice"),
    ],
)
async def test_invalid_structured_output_is_rejected_with_its_field(
    generator: Subject, structured_output: StructuredOutput, field: str
) -> None:
    with pytest.raises(ServeError) as raised:
        await ask(generator.engine, replace(REQUEST, structured_output=structured_output))
    assert raised.value.reason is Reason.INVALID_ARGUMENT
    assert [violation.field for violation in raised.value.violations] == [f"parameters.structured_output.{field}"]
    assert await becomes_idle(generator)


async def test_unknown_adapter_is_rejected(generator: Subject) -> None:
    with pytest.raises(ServeError) as raised:
        await ask(generator.engine, replace(REQUEST, adapter="nobody"))
    assert raised.value.reason is Reason.UNKNOWN_ADAPTER


async def test_health_and_metrics_are_available(generator: Subject) -> None:
    await ask(generator.engine, REQUEST)
    await generator.engine.check_health()
    assert "# TYPE" in generator.engine.metrics_text()
