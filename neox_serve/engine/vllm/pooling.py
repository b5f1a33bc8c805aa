"""Turns vLLM's pooling outputs into embedding results.

An engine computes the pooling that it was started with, `embedding.default_pooling`. For the other pooling it returns the vectors of all
tokens, and this module pools them in float64. That transfers tokens x dimensions floats, so the default should be the most frequent one.
"""

import numpy as np
import numpy.typing as npt
from vllm.outputs import PoolingRequestOutput

from neox_serve.core.types import EmbeddingRequest, EmbeddingResult, Pooling

Vectors = npt.NDArray[np.float64]


def result(output: PoolingRequestOutput, request: EmbeddingRequest, *, per_token: bool) -> EmbeddingResult:
    """Returns the vector that the request asks for. `per_token` says that the output has one vector per token."""
    data: Vectors = output.outputs.data.float().numpy().astype(np.float64)
    vector = _pooled(data, request.pooling) if per_token else data
    if request.normalize:
        vector = vector / (float(np.linalg.norm(vector)) or 1.0)
    return EmbeddingResult(vector.astype("<f4").tobytes(), output.num_cached_tokens or 0)


def _pooled(vectors: Vectors, pooling: Pooling) -> Vectors:
    """Pools vectors of shape (tokens, dimensions)."""
    last: Vectors = vectors[-1]
    return last if pooling is Pooling.LAST else np.mean(vectors, axis=0)
