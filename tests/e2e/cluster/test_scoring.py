"""Scores of real engines equal those of transformers, and a greedy continuation is reported as greedy."""

import pytest

from neox_serve.client import AsyncClient
from neox_serve.model import model_files
from tests.clusters import CommandCluster
from tests.e2e.reference import Reference

pytestmark = pytest.mark.e2e
TOLERANCE = 1e-3
PAIRS = [
    ("import os\nimport ", "sys\n"),
    ("def main(", "argv):\n    return 0\n"),
    ("", "class Reader:\n"),
    ("The quick brown fox ", "jumps over the lazy dog"),
    ("für Größe und ", "Maß"),
]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.load(model_files.locate("builtin", None))


async def test_scores_equal_those_of_transformers(real_cluster: CommandCluster, reference: Reference) -> None:
    async with AsyncClient(real_cluster.address) as client:
        result = await client.score(PAIRS)
        tokenized = await client.tokenize([before + after for before, after in PAIRS])
    for score, text, (before, _) in zip(result.scores, tokenized, PAIRS, strict=True):
        ids = text.token_ids if before else (0, *text.token_ids)
        count = len(score.tokens)
        assert tuple(token.token_id for token in score.tokens) == ids[-count:]
        logprobs = reference.logprobs(ids)
        expected = [float(logprobs[position - 1][ids[position]]) for position in range(len(ids) - count, len(ids))]
        assert [token.logprob for token in score.tokens] == pytest.approx(expected, abs=TOLERANCE)
        assert score.log_likelihood == pytest.approx(sum(expected), abs=TOLERANCE * count)
        most_likely = [int(logprobs[position - 1].argmax()) for position in range(len(ids) - count, len(ids))]
        assert score.is_greedy == (most_likely == list(ids[-count:]))


async def test_score_greedy_continuation_is_reported_as_greedy_and_another_is_not(real_cluster: CommandCluster) -> None:
    prompt = [286, 9, 89, 314, 200]
    async with AsyncClient(real_cluster.address) as client:
        answer = await client.generate([prompt], max_tokens=8, temperature=0.0, ignore_eos=True)
        ids = answer.results[0].completions[0].token_ids
        result = await client.score([(prompt, ids), (prompt, [*ids[:-1], ids[-1] + 1])])
    assert [score.is_greedy for score in result.scores] == [True, False]
    assert result.scores[0].log_likelihood > result.scores[1].log_likelihood
