"""The Python client of neox-serve.

    from neox_serve.client import Client

    with Client("127.0.0.1:50051") as client:
        print(client.generate("def fibonacci(n):", max_tokens=64).text)
        for event in client.stream("def fibonacci(n):", max_tokens=64):
            ...  # StreamChunk, StreamChunk, ..., StreamFinal

`AsyncClient` has the same methods for asyncio. Every failure is a `ServeError` whose `reason` callers switch on. UNAVAILABLE with a retry
delay is tried again by itself (see `RetryPolicy`), with the same request id, and never after the first event of a stream.
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
