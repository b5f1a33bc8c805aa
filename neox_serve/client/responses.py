"""Converts response messages to the client's results. Pure."""

from collections.abc import Iterable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2

from neox_serve.client import results
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.jobs.job import JobState
from neox_serve.core.types import Finish, FinishReason, ModelLimits, Pool, Pooling, PositionLogprobs, TokenLogprob
from neox_serve.v1 import batch_service_pb2, generation_pb2, inference_service_pb2, model_service_pb2, ops_service_pb2, token_service_pb2

_FINISH_REASONS = {
    generation_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    generation_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    generation_pb2.FINISH_REASON_DEADLINE: FinishReason.DEADLINE,
}
_ROW_WORKS = {batch_service_pb2.ROW_WORK_GENERATE: "generate", batch_service_pb2.ROW_WORK_EMBED: "embed"}
_JOB_STATES = {
    batch_service_pb2.JOB_STATE_QUEUED: JobState.QUEUED,
    batch_service_pb2.JOB_STATE_RUNNING: JobState.RUNNING,
    batch_service_pb2.JOB_STATE_SUCCEEDED: JobState.SUCCEEDED,
    batch_service_pb2.JOB_STATE_FAILED: JobState.FAILED,
    batch_service_pb2.JOB_STATE_CANCELLED: JobState.CANCELLED,
}
_POOLINGS = {inference_service_pb2.POOLING_LAST: Pooling.LAST, inference_service_pb2.POOLING_MEAN: Pooling.MEAN}
_POOLS = {ops_service_pb2.POOL_KIND_GENERATION: Pool.GENERATION, ops_service_pb2.POOL_KIND_EMBEDDING: Pool.EMBEDDING}


def generate_result(message: inference_service_pb2.GenerateResponse) -> results.GenerateResult:
    """Converts the response of Generate."""
    return results.GenerateResult(
        request_id=message.request_id,
        model=message.model,
        seed=message.seed if message.HasField("seed") else None,
        results=tuple(_prompt_result(result) for result in message.results),
        usage=_usage(message.usage),
        timings=_timings(message.timings),
    )


def estimate(message: inference_service_pb2.EstimateResponse) -> results.Estimate:
    """Converts the response of Estimate."""
    return results.Estimate(
        prompt_tokens=message.prompt_tokens,
        max_completion_tokens=message.max_completion_tokens,
        cost=message.cost,
        expected_wait_s=_seconds(message.expected_wait) if message.HasField("expected_wait") else None,
        quota_left={field.name: left for field, left in message.quota_left.ListFields()},
        fits_quota=message.fits_quota,
    )


def batch_job(message: Any) -> results.BatchJob:
    """Converts the job in a response of BatchService."""
    job: batch_service_pb2.Job = message.job
    return _batch_job(job)


def batch_jobs(message: batch_service_pb2.ListJobsResponse) -> results.BatchJobs:
    """Converts the response of ListJobs."""
    return results.BatchJobs(tuple(_batch_job(job) for job in message.jobs), message.next_page_token)


def _batch_job(job: batch_service_pb2.Job) -> results.BatchJob:
    progress, (kind, source, output) = job.progress, _work(job)
    return results.BatchJob(
        job_id=job.job_id,
        request_id=job.request_id,
        kind=kind,
        state=_JOB_STATES[job.state],
        input=source,
        output=output,
        total_rows=progress.total_rows,
        completed_rows=progress.completed_rows,
        error_rows=progress.error_rows,
        tokens=progress.tokens,
        message=job.message,
        cancel_requested=job.cancel_requested,
        runs=job.runs,
        run_id=job.run_id,
        created_s=_moment_s(job.create_time),
        started_s=_moment_s(job.start_time) if job.HasField("start_time") else None,
        ended_s=_moment_s(job.end_time) if job.HasField("end_time") else None,
    )


def job_log(message: batch_service_pb2.ReadJobLogResponse) -> results.JobLog:
    """Converts the response of ReadJobLog."""
    return results.JobLog(message.text, message.start, message.run_id)


def _work(job: batch_service_pb2.Job) -> tuple[str, str, str]:
    """The kind of a job, its input and its output."""
    match job.WhichOneof("work"):
        case "finetune":
            return "finetune", job.finetune.input, job.finetune.adapter
        case "evaluate":
            return "evaluate", ",".join(job.evaluate.tasks), job.evaluate.output
        case "quantize":
            return "quantize", job.quantize.calibration, job.quantize.output
        case _:
            return _ROW_WORKS.get(job.rows.work, ""), job.rows.input, job.rows.output


def _moment_s(moment: Timestamp) -> float:
    return moment.seconds + moment.nanos / 1e9


def stream_event(message: inference_service_pb2.StreamGenerateResponse) -> results.StreamEvent:
    """Converts an event of StreamGenerate. Raises INTERNAL if it is neither a chunk nor the final event."""
    if message.HasField("chunk"):
        chunk = message.chunk
        return results.StreamChunk(chunk.index, chunk.text, tuple(chunk.token_ids), _positions(chunk.logprobs))
    if not message.HasField("final"):
        raise ServeError(Reason.INTERNAL, "the server sent an event that this client does not know")
    final = message.final
    return results.StreamFinal(
        request_id=final.request_id,
        model=final.model,
        seed=final.seed if final.HasField("seed") else None,
        finishes=tuple(_finish(finish) for finish in final.finishes),
        prompt_logprobs=_positions(final.prompt_logprobs),
        usage=_usage(final.usage),
        timings=_timings(final.timings),
    )


def score_result(message: inference_service_pb2.ScoreResponse) -> results.ScoreResult:
    """Converts the response of Score."""
    scores = (results.Score(one.log_likelihood, one.is_greedy, tuple(_token(token) for token in one.tokens)) for one in message.scores)
    return results.ScoreResult(message.request_id, message.model, tuple(scores), _usage(message.usage), _timings(message.timings))


def embed_result(message: inference_service_pb2.EmbedResponse) -> results.EmbedResult:
    """The answer of Embed. numpy is imported here because only callers that embed need it."""
    import numpy as np

    return results.EmbedResult(
        request_id=message.request_id,
        model=message.model,
        vectors=np.array([embedding.values for embedding in message.embeddings], dtype=np.float32),
        prompt_tokens=tuple(embedding.prompt_tokens for embedding in message.embeddings),
        usage=_usage(message.usage),
        timings=_timings(message.timings),
    )


def tokenized_texts(message: token_service_pb2.TokenizeResponse) -> tuple[results.TokenizedText, ...]:
    """Converts the response of Tokenize."""
    return tuple(
        results.TokenizedText(tuple(result.token_ids), tuple((offset.start, offset.end) for offset in result.offsets))
        for result in message.results
    )


def texts(message: token_service_pb2.DetokenizeResponse) -> tuple[str, ...]:
    """Converts the response of Detokenize."""
    return tuple(message.texts)


def models(message: model_service_pb2.ListModelsResponse) -> tuple[results.Model, ...]:
    """Converts the response of ListModels."""
    return tuple(_model(model) for model in message.models)


def one_model(message: model_service_pb2.GetModelResponse) -> results.Model:
    """Converts the response of GetModel."""
    return _model(message.model)


def cluster_status(message: ops_service_pb2.GetClusterStatusResponse) -> results.ClusterStatus:
    """Converts the response of GetClusterStatus."""
    return results.ClusterStatus(
        version=message.version,
        gateway_id=message.gateway_id,
        pools=tuple(
            results.PoolStatus(
                _POOLS[pool.kind],
                pool.ready_replicas,
                pool.requests_in_flight,
                pool.outstanding_tokens,
                pool.draining_replicas,
                pool.wanted_replicas if pool.HasField("wanted_replicas") else None,
                pool.scaling_reason,
                pool.scaling_alarm,
            )
            for pool in message.pools
            if pool.kind in _POOLS
        ),
        replicas=tuple(_replica(replica) for replica in message.replicas if replica.pool in _POOLS),
        gateways=tuple(
            results.GatewayStatus(gateway.gateway_id, gateway.requests_in_flight, _seconds(gateway.age)) for gateway in message.gateways
        ),
        tenants=tuple(
            results.TenantStatus(**{name: getattr(tenant, name) for name in results.TenantStatus.__slots__}) for tenant in message.tenants
        ),
        conditions=tuple(results.Condition(condition.reason, condition.message) for condition in message.conditions),
    )


def health(message: health_pb2.HealthCheckResponse) -> str:
    """Converts the response of Health.Check to SERVING, NOT_SERVING, SERVICE_UNKNOWN or UNKNOWN."""
    return health_pb2.HealthCheckResponse.ServingStatus.Name(message.status)


def _prompt_result(message: inference_service_pb2.PromptResult) -> results.PromptResult:
    completions = tuple(_completion(completion) for completion in message.completions)
    return results.PromptResult(completions, _positions(message.prompt_logprobs), _usage(message.usage))


def _completion(message: generation_pb2.Completion) -> results.Completion:
    return results.Completion(
        index=message.index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        finish=_finish(message.finish),
        logprobs=_positions(message.logprobs),
        score=message.score if message.HasField("score") else None,
    )


def _finish(message: generation_pb2.Finish) -> Finish:
    stop_field = message.WhichOneof("stop")
    reason = _FINISH_REASONS.get(message.reason)
    if reason is None:
        raise ServeError(Reason.INTERNAL, f"the server sent finish reason {message.reason}, which this client does not know")
    return Finish(reason, getattr(message, stop_field) if stop_field else None)


def _positions(messages: Iterable[generation_pb2.PositionLogprobs]) -> tuple[PositionLogprobs, ...]:
    return tuple(
        PositionLogprobs(_token(position.token), tuple(_token(alternative) for alternative in position.alternatives))
        for position in messages
    )


def _token(message: generation_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token_id, message.logprob, message.rank, message.text)


def _usage(message: generation_pb2.Usage) -> results.Usage:
    return results.Usage(message.prompt_tokens, message.cached_tokens, message.completion_tokens, message.truncated_tokens)


def _timings(message: generation_pb2.Timings) -> results.Timings:
    return results.Timings(
        tokenization_s=_seconds(message.tokenization),
        admission_s=_seconds(message.admission),
        first_token_s=_seconds(message.first_token) if message.HasField("first_token") else None,
        total_s=_seconds(message.total),
    )


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _model(message: model_service_pb2.Model) -> results.Model:
    names = (model_service_pb2.Capability.Name(capability) for capability in message.capabilities)
    limits = {field.name: getattr(message.limits, field.name) for field in message.limits.DESCRIPTOR.fields}
    return results.Model(
        name=message.name,
        source=message.source,
        revision=message.revision,
        capabilities=frozenset(name.removeprefix("CAPABILITY_").lower() for name in names),
        limits=ModelLimits(**limits),
        adapters=tuple(message.adapters),
        embedding=_embedding_facts(message.embedding) if message.HasField("embedding") else None,
        ready_generation_replicas=message.ready_generation_replicas,
        ready_embedding_replicas=message.ready_embedding_replicas,
    )


def _embedding_facts(message: model_service_pb2.EmbeddingFacts) -> results.EmbeddingFacts:
    return results.EmbeddingFacts(message.dimensions, _POOLINGS[message.default_pooling], message.layer, message.final_layer_norm)


def _replica(message: ops_service_pb2.ReplicaStatus) -> results.ReplicaStatus:
    return results.ReplicaStatus(
        replica_id=message.replica_id,
        pool=_POOLS[message.pool],
        model=message.model,
        state=ops_service_pb2.ReplicaState.Name(message.state).removeprefix("REPLICA_STATE_").lower(),
        running_requests=message.running_requests,
        waiting_requests=message.waiting_requests,
        outstanding_tokens=message.outstanding_tokens,
        kv_usage_fraction=message.kv_usage_fraction,
        output_tokens_per_second=message.output_tokens_per_second,
        age_s=_seconds(message.age),
    )
