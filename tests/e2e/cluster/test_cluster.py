"""A complete cluster with the built-in model: every kind of request, and an engine that dies."""

import asyncio
import json
import os

import numpy as np
import pytest

from neox_serve.client import AsyncClient, Client
from neox_serve.core.errors import Reason
from neox_serve.core.types import FinishReason
from tests.clusters import GATEWAY, GENERATION, ROUTER, CommandCluster
from tests.streams import NO_RETRY, StreamRecord, read_stream, until

pytestmark = pytest.mark.e2e


@pytest.fixture
def client(real_cluster: CommandCluster) -> Client:
    """A client of the cluster."""
    return Client(real_cluster.address)


def test_generate_completes_python(client: Client) -> None:
    result = client.generate("import os\nimport sys\n\n\ndef main(", max_tokens=24, temperature=0.0)
    assert ")" in result.text
    assert ":" in result.text
    assert result.usage.prompt_tokens > 0
    assert result.timings.first_token_s is not None


async def test_stream_joined_equals_unary_in_any_language(real_cluster: CommandCluster) -> None:
    async with AsyncClient(real_cluster.address) as client:
        for prompt in ("def f(x):", "# Größe, naïve, 你好, мир, 🙂\n"):
            options = {"max_tokens": 40, "temperature": 0.8, "seed": 7, "ignore_eos": True}
            unary = await client.generate(prompt, **options)  # type: ignore[arg-type]
            events = [event async for event in client.stream(prompt, **options)]  # type: ignore[arg-type]
            assert "".join(event.text for event in events[:-1]) == unary.text  # type: ignore[union-attr]
            assert unary.seed == 7


def test_serving_processes_have_a_lower_scheduling_class_than_the_engine(real_cluster: CommandCluster) -> None:
    for title in (GATEWAY, GENERATION, ROUTER):
        assert {os.sched_getscheduler(process.pid) for process in real_cluster.processes(title)} == {os.SCHED_BATCH}
    cores = real_cluster.processes("VLLM::EngineCore")
    assert cores
    assert {os.sched_getscheduler(thread.id) for core in cores for thread in core.threads()} == {os.SCHED_OTHER}


def test_generate_several_prompts_returns_n_completions_with_logprobs(client: Client) -> None:
    result = client.generate(["def a(", "def b("], n=2, max_tokens=8, logprobs=2, prompt_logprobs=0, temperature=1.0, seed=1, stop="\n")
    for prompt in result.results:
        assert [completion.index for completion in prompt.completions] == [0, 1]
        assert len(prompt.prompt_logprobs) == prompt.usage.prompt_tokens - 1
        for completion in prompt.completions:
            assert len(completion.logprobs) == len(completion.token_ids)
            assert "\n" not in completion.text


def test_structured_output_follows_schema_regex_and_choice(client: Client) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    assert isinstance(json.loads(client.generate("answer: ", json_schema=schema, max_tokens=60, temperature=0.0).text)["ok"], bool)
    assert client.generate("answer: ", regex="[0-9]{3}", max_tokens=12, temperature=0.0).text.isdigit()
    assert client.generate("answer: ", choice=["yes", "no"], max_tokens=12, temperature=0.0).text in {"yes", "no"}


def test_beam_search_scores_fall_and_beat_greedy(client: Client) -> None:
    result = client.generate("for i in ", beam_width=4, num_return=4, max_tokens=8, ignore_eos=True)
    scores = [completion.score for completion in result.results[0].completions]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    greedy = client.generate("for i in ", max_tokens=8, temperature=0.0, ignore_eos=True, logprobs=0).results[0].completions[0]
    mean = sum(position.token.logprob for position in greedy.logprobs) / len(greedy.logprobs)
    assert scores[0] >= mean - 1e-3  # type: ignore[operator]


def test_embeddings_are_unit_vectors_and_distinguish_texts(client: Client) -> None:
    vectors = client.embed(["def add(a, b): return a + b", "def plus(x, y): return x + y", "The licence of this file."]).vectors
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    last = client.embed("def add(a, b): return a + b", pooling="last").vectors[0]
    assert not np.allclose(last, vectors[0], atol=1e-2)


def test_generate_repeated_prompt_uses_the_prefix_cache(client: Client) -> None:
    prompt = "".join(f"value_{n} = {n}\n" for n in range(60))
    client.generate(prompt, max_tokens=1)
    assert client.generate(prompt, max_tokens=1).usage.cached_tokens > 0


def test_generate_deadline_passes_returns_partial_text(client: Client) -> None:
    result = client.generate("def f():", max_tokens=1500, ignore_eos=True, timeout_s=1.5, on_deadline="partial")
    (completion,) = result.results[0].completions
    assert completion.finish.reason is FinishReason.DEADLINE
    assert completion.token_ids


async def test_stream_engine_killed_ends_with_retry_delay_and_cluster_recovers(real_cluster: CommandCluster) -> None:
    async with AsyncClient(real_cluster.address, retry=NO_RETRY) as client:
        record = StreamRecord()
        reading = asyncio.create_task(read_stream(client, "def f():", max_tokens=1800, record=record))

        async def has_output() -> bool:
            return bool(record.token_ids)

        await until(has_output, 30, "the stream has begun")
        (replica,) = real_cluster.processes(GENERATION)
        engine_processes = [process for process in replica.children(recursive=True) if "VLLM" in " ".join(process.cmdline())]
        engine_processes[-1].kill()
        await reading
        assert record.error is not None
        assert record.error.reason is Reason.REPLICA_LOST
        assert record.error.retry_after_s

        async def serves_again() -> bool:
            return (await read_stream(client, "def f():", max_tokens=4)).error is None

        await until(serves_again, 120, "a new engine serves", every_s=1.0)
