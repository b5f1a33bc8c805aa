"""The contract of every engine about embedding requests."""

import asyncio

import numpy as np
import numpy.typing as npt
import pytest

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.types import EmbeddingRequest, EmbeddingResult, Pooling
from tests.engines import Subject

PROMPT = tuple(range(100, 140))


def vector(result: EmbeddingResult) -> npt.NDArray[np.float32]:
    return np.frombuffer(result.values, dtype="<f4")


def request(pooling: Pooling, *, normalize: bool = True, prompt: tuple[int, ...] = PROMPT) -> EmbeddingRequest:
    return EmbeddingRequest("request", prompt, pooling, normalize)


@pytest.mark.parametrize("pooling", list(Pooling))
async def test_embed_normalizes_on_request(embedder: Subject, pooling: Pooling) -> None:
    unit = vector(await embedder.engine.embed("unit", request(pooling)))
    plain = vector(await embedder.engine.embed("plain", request(pooling, normalize=False)))
    assert np.linalg.norm(unit) == pytest.approx(1.0, abs=1e-5)
    assert np.linalg.norm(plain) != pytest.approx(1.0, abs=1e-3)
    assert np.allclose(plain / np.linalg.norm(plain), unit, atol=1e-5)


async def test_embed_depends_on_pooling_and_input_only(embedder: Subject) -> None:
    mean, last, other, again = await asyncio.gather(
        embedder.engine.embed("mean", request(Pooling.MEAN)),
        embedder.engine.embed("last", request(Pooling.LAST)),
        embedder.engine.embed("other", request(Pooling.MEAN, prompt=PROMPT[::-1])),
        embedder.engine.embed("again", request(Pooling.MEAN)),
    )
    assert len({len(result.values) for result in (mean, last, other)}) == 1
    assert len({mean.values, last.values, other.values}) == 3
    assert np.allclose(vector(mean), vector(again), atol=1e-5)


async def test_embed_when_aborted_raises_cancelled_and_frees_the_request(embedder: Subject) -> None:
    asked = asyncio.create_task(embedder.engine.embed("aborted", request(Pooling.LAST)))
    await asyncio.sleep(0)
    await embedder.engine.abort("aborted")
    with pytest.raises(ServeError) as raised:
        await asked
    assert raised.value.reason is Reason.CANCELLED
    assert embedder.engine.stats().running_requests == 0


async def test_embed_when_cancelled_frees_the_request(embedder: Subject) -> None:
    asked = asyncio.create_task(embedder.engine.embed("cancelled", request(Pooling.MEAN)))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert embedder.engine.stats().running_requests == 0
    assert (await embedder.engine.embed("next", request(Pooling.MEAN))).values
