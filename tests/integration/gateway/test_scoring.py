"""Score over a real port: sums over tokens, items that do not fit, and refused requests."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.client import AsyncClient
from neox_serve.core.errors import Reason, ServeError
from neox_serve.engine.fake.outputs import Vocabulary
from neox_serve.gateway.handlers.scoring import move_trailing_spaces
from neox_serve.v1 import inference_service_pb2
from tests.fakes.whole_path import Path, whole_path

CONTEXT_TOKENS = 2048


@pytest.fixture
async def path() -> AsyncIterator[Path]:
    async with whole_path(adapters=("law",), vocabulary=Vocabulary(size=4096)) as path:
        yield path


@pytest.fixture
async def client(path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"127.0.0.1:{path.server.port}") as client:
        yield client


async def refusal(client: AsyncClient, *items: Any, **options: Any) -> ServeError:
    with pytest.raises(ServeError) as caught:
        await client.score(items, **options)
    return caught.value


async def test_score_sums_only_the_tokens_of_the_continuation(path: Path, client: AsyncClient) -> None:
    result = await client.score([([5, 6], [7, 8, 9]), ([5], [6])])
    first, second = result.scores
    assert [token.token_id for token in first.tokens] == [7, 8, 9]
    assert first.log_likelihood == pytest.approx(sum(token.logprob for token in first.tokens))
    assert first.is_greedy == all(token.rank == 1 for token in first.tokens)
    assert [token.token_id for token in second.tokens] == [6]
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (7, 2)
    await path.nothing_left()


async def test_texts_are_tokenized_together_and_an_empty_context_is_end_of_text(path: Path, client: AsyncClient) -> None:
    await client.score([("def main( ", "argv):"), ("", "import os")])
    token_ids = (await client.tokenize(["def main( argv):", "import os"]))[0].token_ids
    requested = {request.prompt_token_ids for request in path.requests}
    assert token_ids in requested
    assert (0, *(await client.tokenize("import os"))[0].token_ids) in requested


async def test_item_that_does_not_fit_is_refused_or_cut_at_the_start_of_its_context(path: Path, client: AsyncClient) -> None:
    long = list(range(10, 10 + CONTEXT_TOKENS - 3)), [5, 6, 7]
    error = await refusal(client, ([1], [2]), long)
    assert (error.reason, error.metadata["excess_tokens"]) == (Reason.PROMPT_TOO_LONG, "1")
    assert [violation.field for violation in error.violations] == ["items[1]"]
    result = await client.score([long], truncation="keep_end")
    assert result.usage.truncated_tokens == 1
    assert path.requests[-1].prompt_token_ids == (*long[0][1:], *long[1])
    assert [token.token_id for token in result.scores[0].tokens] == [5, 6, 7]
    hopeless = [1], list(range(10, 10 + CONTEXT_TOKENS))
    assert (await refusal(client, hopeless, truncation="keep_end")).reason is Reason.PROMPT_TOO_LONG


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (("a", ""), "items[0].continuation.text"),
        (([5], []), "items[0].continuation.token_ids"),
        (([9_999_999], [5]), "items[0].context.token_ids.ids[0]"),
        (([5], [9_999_999]), "items[0].continuation.token_ids.ids[0]"),
    ],
)
async def test_invalid_items_are_named(client: AsyncClient, item: Any, field: str) -> None:
    error = await refusal(client, item)
    assert error.reason is Reason.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == [field]


async def test_invalid_calls_are_refused(client: AsyncClient) -> None:
    assert [violation.field for violation in (await refusal(client)).violations] == ["items"]
    assert (await refusal(client, ([5], [6]), adapter="none")).reason is Reason.UNKNOWN_ADAPTER
    wrong: Any = "keep_start"
    assert [violation.field for violation in (await refusal(client, ([5], [6]), truncation=wrong)).violations] == ["truncation"]


async def test_session_of_the_call_applies_to_its_items() -> None:
    async with whole_path(replicas=2, vocabulary=Vocabulary(size=4096), policy="session") as path:
        replicas = {session: await _replicas_of(path, session) for session in map(str, range(32))}
        assert all(len(seen) == 1 for seen in replicas.values())
        assert len(set.union(*replicas.values())) == 2


async def _replicas_of(path: Path, session: str) -> set[str]:
    items = [{"context": {"tokenIds": {"ids": [5, number]}}, "continuation": {"tokenIds": {"ids": [7]}}} for number in range(6, 10)]
    request = json_format.ParseDict({"items": items}, inference_service_pb2.ScoreRequest())
    call = path.stubs.inference.Score(request, metadata=(("neox-session", session), ("neox-explain", "1")))
    await call
    routes = [str(value) for key, value in await call.trailing_metadata() if key == "neox-route"]
    assert len(routes) == len(items)
    assert all("why=session" in route for route in routes)
    return {route.split()[0] for route in routes}


@given(st.text(st.characters(codec="utf-8"), max_size=30), st.text(st.characters(codec="utf-8"), max_size=30))
def test_move_trailing_spaces_keeps_the_text_and_leaves_no_space_before_the_boundary(context: str, continuation: str) -> None:
    before, after = move_trailing_spaces(context, continuation)
    assert before + after == context + continuation
    assert before == before.rstrip()
