"""Table of all RPCs of the public API and their handlers."""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from neox_serve.core.prefix_cache.salt import cache_salt
from neox_serve.core.types import Pool
from neox_serve.gateway.dispatch.protocol import Dispatcher
from neox_serve.gateway.handlers.admin import AdminBackend, in_thread
from neox_serve.gateway.handlers.batch import Batch
from neox_serve.gateway.handlers.embedding import Embedding
from neox_serve.gateway.handlers.estimation import Estimation
from neox_serve.gateway.handlers.generation import Generation
from neox_serve.gateway.handlers.models import Models
from neox_serve.gateway.handlers.ops import Ops
from neox_serve.gateway.handlers.scoring import Scoring
from neox_serve.gateway.handlers.tokens import Tokens
from neox_serve.gateway.requests.preparing import Salts, unsalted
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.server.calls import Method
from neox_serve.gateway.server.decoding import Decoder
from neox_serve.gateway.server.health import ADMIN, BATCH, INFERENCE, MODELS, OPS, TOKENS, Condition
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.tenancy.platform import Platform
from neox_serve.v1 import admin_service_pb2 as admin
from neox_serve.v1 import batch_service_pb2 as batch
from neox_serve.v1 import inference_service_pb2 as inference
from neox_serve.v1 import model_service_pb2 as model
from neox_serve.v1 import ops_service_pb2 as operations
from neox_serve.v1 import token_service_pb2 as token


def methods(
    *,
    gateway_id: str,
    served: Served,
    tokenizer: Tokenizer,
    dispatcher: Dispatcher,
    conditions: Callable[[], list[Condition]],
    draining: Callable[[], bool],
    platform: Platform | None,
) -> tuple[Method, ...]:
    """Returns all methods. Calls of operators are not bounded, because they are needed most when the gateway is full."""
    max_bytes = served.limits[Pool.GENERATION].request_bytes
    stream_decoder = Decoder(inference.StreamGenerateRequest, max_bytes)
    salts = _salts(platform)
    generation = Generation(served=served, tokenizer=tokenizer, dispatcher=dispatcher, salts=salts)
    embedding = Embedding(served=served, tokenizer=tokenizer, dispatcher=dispatcher, salts=salts)
    scoring = Scoring(served=served, tokenizer=tokenizer, dispatcher=dispatcher, salts=salts)
    estimation = Estimation(served=served, tokenizer=tokenizer, dispatcher=dispatcher)
    tokens = Tokens(served=served, tokenizer=tokenizer)
    models = Models(served=served, dispatcher=dispatcher)

    ops = Ops(gateway_id=gateway_id, pools=tuple(served.limits), dispatcher=dispatcher, conditions=conditions)
    return (
        Method(INFERENCE, "Generate", Decoder(inference.GenerateRequest, max_bytes), unary=generation.generate, metered=True),
        Method(INFERENCE, "StreamGenerate", stream_decoder, stream=generation.stream_generate, metered=True),
        Method(INFERENCE, "Embed", Decoder(inference.EmbedRequest, max_bytes), unary=embedding.embed, metered=True),
        Method(INFERENCE, "Score", Decoder(inference.ScoreRequest, max_bytes), unary=scoring.score, metered=True),
        Method(INFERENCE, "Estimate", Decoder(inference.EstimateRequest, max_bytes), unary=estimation.estimate),
        Method(TOKENS, "Tokenize", Decoder(token.TokenizeRequest, max_bytes), unary=tokens.tokenize),
        Method(TOKENS, "Detokenize", Decoder(token.DetokenizeRequest, max_bytes), unary=tokens.detokenize),
        Method(MODELS, "ListModels", Decoder(model.ListModelsRequest, max_bytes), unary=models.list_models, bounded=False),
        Method(MODELS, "GetModel", Decoder(model.GetModelRequest, max_bytes), unary=models.get_model, bounded=False),
        *_ops_methods(ops, max_bytes),
        *(_admin_methods(platform, max_bytes) if platform else ()),
        *(_batch_methods(Batch(platform.jobs, served, draining), max_bytes) if platform else ()),
    )


def _salts(platform: Platform | None) -> Salts:
    """Returns the function for cache salts. Without a platform there is only one tenant, and no salt."""
    if platform is None:
        return unsalted
    secret = platform.secret
    return lambda tenant: cache_salt(secret, tenant.name)


def _ops_methods(service: Ops, max_bytes: int) -> tuple[Method, ...]:
    drain, status = Decoder(operations.DrainReplicaRequest, max_bytes), Decoder(operations.GetClusterStatusRequest, max_bytes)
    return (
        Method(OPS, "DrainReplica", drain, unary=service.drain_replica, bounded=False),
        Method(OPS, "GetClusterStatus", status, unary=service.get_cluster_status, bounded=False),
    )


def _batch_methods(service: Batch, max_bytes: int) -> tuple[Method, ...]:
    return (
        Method(BATCH, "CreateJob", Decoder(batch.CreateJobRequest, max_bytes), unary=service.create_job),
        Method(BATCH, "GetJob", Decoder(batch.GetJobRequest, max_bytes), unary=service.get_job),
        Method(BATCH, "ListJobs", Decoder(batch.ListJobsRequest, max_bytes), unary=service.list_jobs),
        Method(BATCH, "ReadJobLog", Decoder(batch.ReadJobLogRequest, max_bytes), unary=service.read_job_log),
        Method(BATCH, "CancelJob", Decoder(batch.CancelJobRequest, max_bytes), unary=service.cancel_job),
        Method(BATCH, "WatchJob", Decoder(batch.WatchJobRequest, max_bytes), stream=service.watch_job),
    )


def _admin_methods(platform: Platform, max_bytes: int) -> tuple[Method, ...]:
    backend = AdminBackend(platform.tenants, platform.usage, platform.secret)
    handlers: tuple[tuple[type[Message], Callable[[Any, str], Message]], ...] = (
        (admin.CreateTenantRequest, backend.create_tenant),
        (admin.GetTenantRequest, backend.get_tenant),
        (admin.ListTenantsRequest, backend.list_tenants),
        (admin.UpdateTenantRequest, backend.update_tenant),
        (admin.CreateKeyRequest, backend.create_key),
        (admin.RotateKeyRequest, backend.rotate_key),
        (admin.RevokeKeyRequest, backend.revoke_key),
        (admin.ListKeysRequest, backend.list_keys),
        (admin.GetUsageRequest, backend.get_usage),
        (admin.VerifyUsageRequest, backend.verify_usage),
        (admin.ListAuditEntriesRequest, backend.list_audit_entries),
    )
    refresh = platform.directory.refresh
    return tuple(
        Method(
            ADMIN,
            request.DESCRIPTOR.name.removesuffix("Request"),
            Decoder(request, max_bytes),
            unary=in_thread(handler, refresh),
            bounded=False,
        )
        for request, handler in handlers
    )
