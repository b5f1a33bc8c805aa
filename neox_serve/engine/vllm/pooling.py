"""vLLM's vectors as ours.

An engine pools in the way it was started with, `embedding.default_pooling`. For the other way it returns every token's vector and pooling
happens here, in float64; the price is the transfer of tokens x dimensions floats, so the default should be what is asked for most.
"""

import numpy as np
import numpy.typing as npt
from vllm.outputs import PoolingRequestOutput

from neox_serve.core.types import EmbeddingRequest, EmbeddingResult, Pooling

Vectors = npt.NDArray[np.float64]


def result(output: PoolingRequestOutput, request: EmbeddingRequest, *, whole: bool) -> EmbeddingResult:
    """The vector that was asked for. whole: the output holds one vector a token."""
    data: Vectors = output.outputs.data.float().numpy().astype(np.float64)
    vector = _pooled(data, request.pooling) if whole else data
    if request.normalize:
        vector = vector / (float(np.linalg.norm(vector)) or 1.0)
    return EmbeddingResult(vector.astype("<f4").tobytes(), output.num_cached_tokens or 0)


def _pooled(vectors: Vectors, pooling: Pooling) -> Vectors:
    """One vector of many, shape (tokens, dimensions)."""
    last: Vectors = vectors[-1]
    return last if pooling is Pooling.LAST else np.mean(vectors, axis=0)
