"""vLLM's vectors, held to transformers' hidden states: both poolings from one engine."""

import asyncio

import numpy as np
import numpy.typing as npt
import pytest

from neox_serve.core.types import EmbeddingRequest, EmbeddingResult, Pooling, TokenIds
from neox_serve.engine.protocol import Engine
from neox_serve.model import model_files
from tests.e2e.reference import Reference

pytestmark = pytest.mark.e2e

PROMPTS = [(5,), tuple(range(100, 137)), tuple(range(1000, 2900)), tuple(range(300, 2348))]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.load(model_files.locate("builtin", None))


def vector(result: EmbeddingResult) -> npt.NDArray[np.float32]:
    return np.frombuffer(result.values, dtype="<f4")


def expected(reference: Reference, prompt: TokenIds, pooling: Pooling) -> npt.NDArray[np.float64]:
    hidden = reference.hidden(prompt).numpy().astype(np.float64)
    return np.asarray(hidden[-1] if pooling is Pooling.LAST else hidden.mean(axis=0))


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: f"{len(prompt)} tokens")
async def test_embed_pools_the_hidden_states(embedding_engine: Engine, reference: Reference, prompt: TokenIds, pooling: Pooling) -> None:
    got = vector(await embedding_engine.embed("key", EmbeddingRequest("key", prompt, pooling, normalize=False)))
    wanted = expected(reference, prompt, pooling)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 2e-3 * np.abs(wanted).max()


async def test_embed_with_different_poolings_in_one_batch(embedding_engine: Engine, reference: Reference) -> None:
    asked = [(prompt, pooling) for prompt in PROMPTS[:2] for pooling in Pooling for _ in range(3)]
    results = await asyncio.gather(
        *(embedding_engine.embed(key, EmbeddingRequest(str(key), prompt, pooling)) for key, (prompt, pooling) in enumerate(asked))
    )
    for (prompt, pooling), result in zip(asked, results, strict=True):
        wanted = expected(reference, prompt, pooling)
        assert float(vector(result) @ (wanted / np.linalg.norm(wanted))) == pytest.approx(1.0, abs=1e-4)


async def test_embed_of_the_same_prompt_twice_returns_the_same_vector(embedding_engine: Engine) -> None:
    request = EmbeddingRequest("key", PROMPTS[2], Pooling.MEAN)
    first, second = [await embedding_engine.embed("key", request) for _ in range(2)]
    assert np.allclose(vector(first), vector(second), atol=1e-6)
