"""Embeddings of a chosen layer equal the hidden states that transformers computes."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from neox_serve.core.types import EmbeddingRequest, Pool, Pooling, TokenIds
from neox_serve.engine.protocol import Engine
from neox_serve.model import model_files
from neox_serve.settings import Settings, restore
from tests.e2e.reference import Reference
from tests.engines import SMALL, Running

pytestmark = pytest.mark.e2e

PROMPT = tuple(range(100, 177))
TOLERANCE = 2e-3
"""Allowed difference, as a fraction of the largest value."""


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.load(model_files.locate("builtin", None))


def settings_of(engine: dict[str, Any] | None = None, **embedding: Any) -> Settings:
    return restore({"embedding": {"engine": {**SMALL, "executor_backend": "uni", **(engine or {})}, **embedding}})


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Running]:
    running = await Running.start(Pool.EMBEDDING, settings)
    try:
        yield running
    finally:
        await running.engine.close()


async def vector(engine: Engine, pooling: Pooling, prompt: TokenIds = PROMPT) -> npt.NDArray[np.float32]:
    result = await engine.embed("key", EmbeddingRequest("key", prompt, pooling, normalize=False))
    return np.frombuffer(result.values, dtype="<f4")


def pooled(hidden: Any, pooling: Pooling) -> npt.NDArray[np.float64]:
    values = hidden.numpy().astype(np.float64)
    return np.asarray(values[-1] if pooling is Pooling.LAST else values.mean(axis=0))


def is_close(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.float64]) -> bool:
    return bool(np.abs(got - wanted).max() < TOLERANCE * np.abs(wanted).max())


Hidden = Callable[[Reference], Any]


@pytest.mark.parametrize(
    ("embedding", "hidden"),
    [
        ({"layer": 2}, lambda reference: reference.hidden_of(PROMPT, 2)),
        ({"layer": 2, "final_layer_norm": True}, lambda reference: reference.final_norm(reference.hidden_of(PROMPT, 2))),
        ({"final_layer_norm": False}, lambda reference: reference.last_without_norm(PROMPT)),
    ],
    ids=["second", "second with the final layer norm", "last without it"],
)
async def test_vectors_equal_the_hidden_states_of_the_layer(reference: Reference, embedding: dict[str, Any], hidden: Hidden) -> None:
    async with started(settings_of(**embedding)) as running:
        for pooling in Pooling:
            assert is_close(await vector(running.engine, pooling), pooled(hidden(reference), pooling))


async def test_two_workers_give_the_hidden_states_of_the_layer(reference: Reference) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two workers are bound to two cores")
    engine = {"executor_backend": "auto", "tensor_parallel_size": 2, "cpu_threads_bind": "0|1"}
    async with started(settings_of(engine, layer=1)) as running:
        assert is_close(await vector(running.engine, Pooling.MEAN), pooled(reference.hidden_of(PROMPT, 1), Pooling.MEAN))
