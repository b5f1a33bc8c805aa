"""The Python client of neox-serve, for Python 3.10 and later. It imports neox_serve.core, neox_serve.wire.status and the generated code.

    from neox_serve.client import Client

    with Client("127.0.0.1:50051") as client:
        print(client.generate("def fibonacci(n):", max_tokens=64).text)
        for event in client.stream("def fibonacci(n):", max_tokens=64):
            ...  # StreamChunk, StreamChunk, ..., StreamFinal

`AsyncClient` has the same methods for asyncio. A failed call raises `ServeError`; its `reason` is stable, so callers can switch on it. If
the service is temporarily unavailable and names a delay, the client repeats the call with the same request id (see `RetryPolicy`). It never
repeats a stream after the first event.

Start reading at async_client.py; sync_client.py is generated from it. calls.py makes the requests and responses.py reads the responses.
"""

from neox_serve.client.async_client import AsyncClient, AsyncGenerationStream
from neox_serve.client.connection import Tls
from neox_serve.client.results import (
    BatchJob,
    BatchJobs,
    ClusterStatus,
    Completion,
    EmbedResult,
    Estimate,
    GenerateResult,
    JobLog,
    Model,
    PromptResult,
    Score,
    ScoreResult,
    StreamChunk,
    StreamEvent,
    StreamFinal,
    Timings,
    TokenizedText,
    Usage,
)
from neox_serve.client.retry import RetryPolicy
from neox_serve.client.sync_client import Client, GenerationStream
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.jobs.job import JobState

__all__ = [
    "AsyncClient",
    "AsyncGenerationStream",
    "BatchJob",
    "BatchJobs",
    "Client",
    "ClusterStatus",
    "Completion",
    "EmbedResult",
    "Estimate",
    "GenerateResult",
    "GenerationStream",
    "JobLog",
    "JobState",
    "Model",
    "PromptResult",
    "Reason",
    "RetryPolicy",
    "Score",
    "ScoreResult",
    "ServeError",
    "StreamChunk",
    "StreamEvent",
    "StreamFinal",
    "Timings",
    "Tls",
    "TokenizedText",
    "Usage",
]
