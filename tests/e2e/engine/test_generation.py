"""vLLM behind the engine protocol, held to transformers on the same weights; and what only a real engine can show."""

import asyncio
import json
import re
from dataclasses import replace

import jsonschema
import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.generation.beam_search import BeamSearch
from neox_serve.core.types import Beam, Choice, FinishReason, GenerationRequest, JsonSchema, Regex, Sampling, Stopping, StructuredOutput
from neox_serve.engine.protocol import Engine
from neox_serve.model import model_files
from neox_serve.model.tokenizer import Tokenizer
from tests.e2e.reference import Reference
from tests.engines import BLOCK_SIZE, MAX_NUM_SEQS
from tests.fakes.recording_sink import RecordingSink, ask, stopping

pytestmark = pytest.mark.e2e

GREEDY = Sampling(temperature=0.0)
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.load(model_files.locate("builtin", None))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(model_files.locate_tokenizer("builtin", None))


@pytest.fixture(scope="module")
def request_(tokenizer: Tokenizer) -> GenerationRequest:
    prompt = tokenizer.encode("import os\n\ndef read(path):\n    ")
    return GenerationRequest("request", prompt, Stopping(max_tokens=12, ignore_eos=True), GREEDY)


async def test_greedy_tokens_equal_those_of_transformers(
    generation_engine: Engine, reference: Reference, request_: GenerationRequest
) -> None:
    answer = await ask(generation_engine, request_)
    assert answer.token_ids() == reference.greedy(request_.prompt_token_ids, 12)


async def test_logprobs_equal_those_of_transformers(generation_engine: Engine, reference: Reference, request_: GenerationRequest) -> None:
    answer = await ask(generation_engine, replace(request_, logprobs=2, prompt_logprobs=2))
    text = (*request_.prompt_token_ids, *answer.token_ids())
    prompt = answer.deltas[0].prompt
    assert prompt is not None
    told = [*prompt.logprobs, *(position for part in answer.parts() for position in part.logprobs)]
    truth = reference.logprobs(text)
    assert len(told) == len(text) - 1
    for index, position in enumerate(told):
        assert position.token.token_id == text[index + 1]
        for token in (position.token, *position.alternatives):
            assert token.logprob == pytest.approx(float(truth[index, token.token_id]), abs=TOLERANCE)
        assert position.token.rank == 1 + int((truth[index] > truth[index, position.token.token_id]).sum())


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
async def test_beam_search_finds_the_same_sequences_as_transformers(
    generation_engine: Engine, reference: Reference, request_: GenerationRequest, length_penalty: float
) -> None:
    beam, rules = Beam(3, length_penalty, 3), Stopping(max_tokens=8)
    search = BeamSearch(beam, rules, 0, len(request_.prompt_token_ids))
    while not search.done:
        search = search.advance(
            [reference.candidates((*request_.prompt_token_ids, *one.token_ids), search.candidates_per_beam) for one in search.active]
        )
    answer = await ask(generation_engine, replace(request_, stopping=rules, beam=beam))
    (delta,) = answer.deltas
    assert [part.token_ids for part in delta.sequences] == [found.token_ids for found in search.best()]
    assert [part.score for part in delta.sequences] == pytest.approx([search.score(found) for found in search.best()], abs=TOLERANCE)


async def test_beam_of_one_is_greedy(generation_engine: Engine, request_: GenerationRequest) -> None:
    greedy, beam = await ask(generation_engine, request_), await ask(generation_engine, replace(request_, beam=Beam(1)))
    assert (beam.token_ids(), beam.text()) == (greedy.token_ids(), greedy.text())


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"structured_output": Choice(("a",))}, "parameters.structured_output"),
        ({"stopping": Stopping(max_tokens=4, stop_sequences=("x",))}, "parameters.stopping.stop_sequences"),
        ({"prompt_logprobs": 1}, "parameters.prompt_logprobs"),
    ],
)
async def test_beam_search_rejects_unsupported_parameters(
    generation_engine: Engine, request_: GenerationRequest, wrong: dict[str, object], field: str
) -> None:
    with pytest.raises(ServeError) as raised:
        await ask(generation_engine, replace(request_, beam=Beam(2), **wrong))  # type: ignore[arg-type]
    assert [violation.field for violation in raised.value.violations] == [field]


async def test_second_request_with_the_same_prompt_reports_cached_tokens(generation_engine: Engine, request_: GenerationRequest) -> None:
    prompt = tuple(range(1000, 1000 + 3 * BLOCK_SIZE + 5))
    first, second = [await ask(generation_engine, replace(request_, prompt_token_ids=prompt)) for _ in range(2)]
    assert [answer.deltas[0].prompt and answer.deltas[0].prompt.cached_tokens for answer in (first, second)] == [0, 3 * BLOCK_SIZE]
    assert first.token_ids() == second.token_ids()


async def test_adapter_changes_the_output_unless_its_weights_are_zero(generation_engine: Engine, request_: GenerationRequest) -> None:
    base, zero, loud = await asyncio.gather(
        ask(generation_engine, request_, "base"),
        ask(generation_engine, replace(request_, adapter="zero"), "zero"),
        ask(generation_engine, replace(request_, adapter="loud"), "loud"),
    )
    assert zero.token_ids() == base.token_ids()
    assert loud.token_ids() != base.token_ids()
    again = await ask(generation_engine, request_)
    assert again.token_ids() == base.token_ids()


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["left", "right"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "size"],
    "additionalProperties": False,
}


async def test_json_schema_output_follows_the_schema(generation_engine: Engine, request_: GenerationRequest) -> None:
    request = stopping(replace(request_, structured_output=JsonSchema(json.dumps(SCHEMA))), max_tokens=60, ignore_eos=False)
    answer = await ask(generation_engine, request)
    jsonschema.validate(json.loads(answer.text()), SCHEMA)
    finish = answer.parts()[-1].finish
    assert finish is not None
    assert finish.reason is FinishReason.STOP


async def test_regex_and_choice_outputs_match(generation_engine: Engine, request_: GenerationRequest) -> None:
    base = stopping(request_, max_tokens=40, ignore_eos=False)
    number = await ask(generation_engine, replace(base, structured_output=Regex(r"\d{3}-\d{4}")))
    assert re.fullmatch(r"\d{3}-\d{4}", number.text())
    choices = ("中文字符", "👍🏽 emoji", "plain")
    for seed in range(3):
        chosen = await ask(
            generation_engine, replace(base, structured_output=Choice(choices), sampling=Sampling(temperature=1.5, seed=seed))
        )
        assert chosen.text() in choices


IMPOSSIBLE: list[tuple[StructuredOutput, str]] = [
    (Regex("("), "regex"),
    (Regex("(?=a)b"), "regex"),
    (Regex("a**"), "regex"),
    (Regex("a\x00b"), "regex"),
    (JsonSchema('{"type": "nonsense"}'), "json_schema"),
    (JsonSchema('{"$ref": "#/$defs/missing"}'), "json_schema"),
    (JsonSchema('{"type": "string", "pattern": "("}'), "json_schema"),
    (JsonSchema('{"type": "string", "minLength": 5, "maxLength": 2}'), "json_schema"),
    (JsonSchema('{"type": "integer", "multipleOf": 3}'), "json_schema"),
    (JsonSchema('{"a": ' * 200 + "1" + "}" * 200), "json_schema"),
]


async def test_impossible_structured_outputs_are_rejected_without_affecting_others(
    generation_engine: Engine, request_: GenerationRequest
) -> None:
    sink = RecordingSink()
    await generation_engine.generate("bystander", stopping(request_, max_tokens=150), sink)
    await sink.until("bystander", deltas=1)

    async def assert_rejected(number: int, structured_output: StructuredOutput, field: str) -> None:
        with pytest.raises(ServeError) as raised:
            await ask(generation_engine, replace(request_, structured_output=structured_output), number)
        assert raised.value.reason is Reason.INVALID_ARGUMENT
        assert [violation.field for violation in raised.value.violations] == [f"parameters.structured_output.{field}"]
        assert "/project/" not in raised.value.message

    await asyncio.gather(
        *(assert_rejected(number, structured_output, field) for number, (structured_output, field) in enumerate(IMPOSSIBLE))
    )
    deltas = await sink.until("bystander")
    assert deltas[-1].failure is None
    assert sum(len(part.token_ids) for delta in deltas for part in delta.sequences) == 150
    await generation_engine.check_health()


async def test_slow_grammar_compilation_does_not_delay_other_requests(generation_engine: Engine, request_: GenerationRequest) -> None:
    heavy = {"type": "object", "properties": {f"p{n}": {"type": "string", "maxLength": 500} for n in range(60)}}
    slow = asyncio.create_task(ask(generation_engine, replace(request_, structured_output=JsonSchema(json.dumps(heavy))), "slow"))
    sink = RecordingSink()
    await generation_engine.generate("bystander", stopping(request_, max_tokens=30), sink)
    await sink.until("bystander")
    assert len(sink.calls) >= 30
    await slow


@pytest.mark.parametrize(
    "wrong",
    [
        {"logprobs": 10_000},
        {"sampling": Sampling(logit_bias={1_000_000: 1.0})},
        {"stopping": Stopping(max_tokens=4, stop_token_ids=(1_000_000,))},
        {"prompt_token_ids": (1_000_000,)},
        {"prompt_token_ids": tuple(range(1, 2100))},
    ],
)
async def test_parameters_that_vllm_rejects_are_invalid_arguments(
    generation_engine: Engine, request_: GenerationRequest, wrong: dict[str, object]
) -> None:
    with pytest.raises(ServeError) as raised:
        await ask(generation_engine, replace(request_, **wrong))  # type: ignore[arg-type]
    assert raised.value.reason is Reason.INVALID_ARGUMENT
    assert generation_engine.stats().waiting_requests == 0


async def test_metrics_are_those_of_vllm(generation_engine: Engine, request_: GenerationRequest) -> None:
    await ask(generation_engine, request_)
    text = generation_engine.metrics_text()
    assert "vllm:generation_tokens_total{" in text
    assert "python_info" not in text


async def test_stats_distinguish_running_and_waiting_requests(generation_engine: Engine, request_: GenerationRequest) -> None:
    sink = RecordingSink()
    long = stopping(request_, max_tokens=1000)
    for number in range(MAX_NUM_SEQS + 2):
        await generation_engine.generate(number, long, sink)
    for number in range(MAX_NUM_SEQS):
        await sink.until(number, deltas=2)
    stats = generation_engine.stats()
    assert (stats.running_requests, stats.waiting_requests) == (MAX_NUM_SEQS, 2)
    assert 0 < stats.kv_usage_fraction <= 1
    for number in range(MAX_NUM_SEQS + 2):
        await generation_engine.abort(number)
