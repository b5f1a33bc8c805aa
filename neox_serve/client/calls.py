"""Builds the calls of the API: request, method, and how the response is read. Pure; both clients make the same calls.

A number that does not fit its protobuf type, text that is not valid Unicode, or an unknown word raises the same INVALID_ARGUMENT error,
with the field's path, that the server returns for a value out of range.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Generic, TypeVar, cast

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neox_serve.client import responses
from neox_serve.client.message_fields import refuse_unknown, set_fields, set_seconds, word
from neox_serve.client.options import (
    CallOptions,
    EmbedOptions,
    EvaluateOptions,
    FinetuneOptions,
    GenerateOptions,
    JobOptions,
    Prompt,
    QuantizeOptions,
    ScoreOptions,
    StreamOptions,
)
from neox_serve.client.results import (
    BatchJob,
    BatchJobs,
    ClusterStatus,
    EmbedResult,
    Estimate,
    GenerateResult,
    JobLog,
    Model,
    ScoreResult,
    StreamEvent,
    TokenizedText,
)
from neox_serve.core.errors import invalid
from neox_serve.v1 import (
    admin_service_pb2_grpc,
    batch_service_pb2,
    batch_service_pb2_grpc,
    generation_pb2,
    inference_service_pb2,
    inference_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    ops_service_pb2,
    ops_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ApiCall(Generic[T]):
    """A call of one method of the API."""

    stub: Callable[[Any], Any]
    """The generated stub class of the service."""
    method: str
    """Name of the method, which is an attribute of the stub."""
    request: Message
    read: Callable[[Any], T]
    """Converts each response message to a result."""
    timeout_s: float | None = None
    """Seconds that the call may take, including retries; None: no limit."""

    @property
    def request_id(self) -> str:
        """The request's id; empty if the method has none."""
        return getattr(self.request, "request_id", "")


def generate(prompts: Prompt | Sequence[Prompt], options: GenerateOptions) -> ApiCall[GenerateResult]:
    """InferenceService.Generate for one prompt or many."""
    request = _generation(inference_service_pb2.GenerateRequest(), prompts, options)
    stub = inference_service_pb2_grpc.InferenceServiceStub
    return ApiCall(stub, "Generate", request, responses.generate_result, options.get("timeout_s"))


def estimate(prompts: Prompt | Sequence[Prompt], options: GenerateOptions) -> ApiCall[Estimate]:
    """InferenceService.Estimate for one prompt or many."""
    request = _generation(inference_service_pb2.EstimateRequest(), prompts, options)
    stub = inference_service_pb2_grpc.InferenceServiceStub
    return ApiCall(stub, "Estimate", request, responses.estimate, options.get("timeout_s"))


def _generation(request: Any, prompts: Prompt | Sequence[Prompt], options: GenerateOptions) -> Any:
    """Sets the fields that GenerateRequest and EstimateRequest share."""
    refuse_unknown(options, GenerateOptions)
    request = _identified(request, options)
    set_fields(request, "", {"adapter": options.get("adapter"), "priority": word(_PRIORITIES, "priority", options)})
    request.prompts.extend(_prompts("prompts", prompts))
    request.parameters.CopyFrom(_parameters(options))
    if options.get("beam_width") is not None:
        beams = {name: options.get(name) for name in ("beam_width", "length_penalty", "num_return")}
        set_fields(request.beam_search, "beam_search.", beams)
    return request


def stream(prompt: Prompt, options: StreamOptions) -> ApiCall[StreamEvent]:
    """InferenceService.StreamGenerate."""
    refuse_unknown(options, StreamOptions)
    request = _identified(inference_service_pb2.StreamGenerateRequest(), options)
    set_fields(request, "", {"adapter": options.get("adapter"), "priority": word(_PRIORITIES, "priority", options)})
    request.prompt.CopyFrom(_prompt("prompt", prompt))
    request.parameters.CopyFrom(_parameters(options))
    set_fields(request.options, "options.", {"min_chunk_tokens": options.get("min_chunk_tokens")})
    set_seconds(request.options, "options.", "min_chunk_interval", options.get("min_chunk_interval_s"))
    stub = inference_service_pb2_grpc.InferenceServiceStub
    return ApiCall(stub, "StreamGenerate", request, responses.stream_event, options.get("timeout_s"))


def score(items: Iterable[tuple[Prompt, Prompt]], options: ScoreOptions) -> ApiCall[ScoreResult]:
    """InferenceService.Score for pairs of context and continuation."""
    refuse_unknown(options, ScoreOptions)
    request = _identified(inference_service_pb2.ScoreRequest(), options)
    set_fields(request, "", {"adapter": options.get("adapter"), "priority": word(_PRIORITIES, "priority", options)})
    set_fields(request, "", {"truncation": word(_TRUNCATIONS, "truncation", options)})
    for position, (context, continuation) in enumerate(items):
        item = request.items.add()
        if len(context):
            item.context.CopyFrom(_prompt(f"items[{position}].context", context))
        item.continuation.CopyFrom(_prompt(f"items[{position}].continuation", continuation))
    stub = inference_service_pb2_grpc.InferenceServiceStub
    return ApiCall(stub, "Score", request, responses.score_result, options.get("timeout_s"))


def embed(inputs: Prompt | Sequence[Prompt], options: EmbedOptions) -> ApiCall[EmbedResult]:
    """InferenceService.Embed for one input or many."""
    refuse_unknown(options, EmbedOptions)
    request = _identified(inference_service_pb2.EmbedRequest(), options)
    request.inputs.extend(_prompts("inputs", inputs))
    set_fields(request, "", {"layer": options.get("layer"), "normalize": options.get("normalize")})
    set_fields(request, "", {"truncation": word(_TRUNCATIONS, "truncation", options)})
    set_fields(request, "", {"pooling": word(_POOLINGS, "pooling", options), "priority": word(_PRIORITIES, "priority", options)})
    stub = inference_service_pb2_grpc.InferenceServiceStub
    return ApiCall(stub, "Embed", request, responses.embed_result, options.get("timeout_s"))


def tokenize(texts: str | Sequence[str], *, include_offsets: bool, options: CallOptions) -> ApiCall[tuple[TokenizedText, ...]]:
    """TokenService.Tokenize for one text or many."""
    refuse_unknown(options, CallOptions)
    request = _identified(token_service_pb2.TokenizeRequest(include_offsets=include_offsets), options)
    set_fields(request, "", {"texts": [texts] if isinstance(texts, str) else texts})
    return ApiCall(token_service_pb2_grpc.TokenServiceStub, "Tokenize", request, responses.tokenized_texts, options.get("timeout_s"))


def detokenize(sequences: Sequence[int] | Sequence[Sequence[int]], options: CallOptions) -> ApiCall[tuple[str, ...]]:
    """TokenService.Detokenize for one sequence of ids or many."""
    refuse_unknown(options, CallOptions)
    request = _identified(token_service_pb2.DetokenizeRequest(), options)
    many = [sequences] if _is_token_ids(sequences) else sequences
    for position, ids in enumerate(cast("Sequence[Sequence[int]]", many)):
        set_fields(request.sequences.add(), f"sequences[{position}].", {"ids": ids})
    return ApiCall(token_service_pb2_grpc.TokenServiceStub, "Detokenize", request, responses.texts, options.get("timeout_s"))


def list_models(timeout_s: float | None) -> ApiCall[tuple[Model, ...]]:
    """ModelService.ListModels."""
    return ApiCall(
        model_service_pb2_grpc.ModelServiceStub, "ListModels", model_service_pb2.ListModelsRequest(), responses.models, timeout_s
    )


def get_model(name: str, timeout_s: float | None) -> ApiCall[Model]:
    """ModelService.GetModel."""
    request = model_service_pb2.GetModelRequest()
    set_fields(request, "", {"name": name})
    return ApiCall(model_service_pb2_grpc.ModelServiceStub, "GetModel", request, responses.one_model, timeout_s)


def cluster_status(timeout_s: float | None) -> ApiCall[ClusterStatus]:
    """OpsService.GetClusterStatus."""
    request = ops_service_pb2.GetClusterStatusRequest()
    return ApiCall(ops_service_pb2_grpc.OpsServiceStub, "GetClusterStatus", request, responses.cluster_status, timeout_s)


def drain_replica(replica_id: str, timeout_s: float | None) -> ApiCall[None]:
    """OpsService.DrainReplica."""
    request = ops_service_pb2.DrainReplicaRequest()
    set_fields(request, "", {"replica_id": replica_id})
    return ApiCall(ops_service_pb2_grpc.OpsServiceStub, "DrainReplica", request, lambda _: None, timeout_s)


def create_job(work: str, source: str, output: str, options: JobOptions) -> ApiCall[BatchJob]:
    """BatchService.CreateJob for the rows of a file."""
    refuse_unknown(options, JobOptions)
    request = batch_service_pb2.CreateJobRequest()
    set_fields(request, "", {"request_id": options.get("request_id") or uuid.uuid4().hex})
    named = {"work": word(_ROW_WORKS, "work", {"work": work}), "input": source, "output": output}
    given = options.get("options")
    chosen = {name: value for name, value in options.items() if name not in {"request_id", "timeout_s", "options", "max_stall_s"}}
    set_fields(request.rows, "rows.", {**named, **chosen, "options_json": None if given is None else json.dumps(given)})
    set_seconds(request.rows, "rows.", "max_stall", options.get("max_stall_s"))
    return ApiCall(batch_service_pb2_grpc.BatchServiceStub, "CreateJob", request, responses.batch_job, options.get("timeout_s"))


def create_finetune(source: str, adapter: str, options: FinetuneOptions) -> ApiCall[BatchJob]:
    """BatchService.CreateJob for fine-tuning."""
    return _create("finetune", {"input": source, "adapter": adapter}, options, FinetuneOptions)


def create_evaluation(tasks: Sequence[str], output: str, options: EvaluateOptions) -> ApiCall[BatchJob]:
    """BatchService.CreateJob for an evaluation."""
    return _create("evaluate", {"tasks": tasks, "output": output}, options, EvaluateOptions)


def create_quantization(scheme: str, output: str, calibration: str, held_out: str, options: QuantizeOptions) -> ApiCall[BatchJob]:
    """BatchService.CreateJob for quantization."""
    named = {"scheme": scheme, "output": output, "calibration": calibration, "held_out": held_out}
    return _create("quantize", named, options, QuantizeOptions)


def _create(work: str, named: Mapping[str, Any], options: Mapping[str, Any], allowed: type) -> ApiCall[BatchJob]:
    """CreateJob for a kind of work whose options are the fields of its message."""
    refuse_unknown(options, allowed)
    request = batch_service_pb2.CreateJobRequest()
    set_fields(request, "", {"request_id": options.get("request_id") or uuid.uuid4().hex})
    given = {name: value for name, value in options.items() if name not in {"request_id", "timeout_s"}}
    set_fields(getattr(request, work), f"{work}.", {**named, **given})
    return ApiCall(batch_service_pb2_grpc.BatchServiceStub, "CreateJob", request, responses.batch_job, options.get("timeout_s"))


def get_job(job_id: str, timeout_s: float | None) -> ApiCall[BatchJob]:
    """BatchService.GetJob."""
    return _of_job("GetJob", batch_service_pb2.GetJobRequest(), job_id, timeout_s)


def cancel_job(job_id: str, timeout_s: float | None) -> ApiCall[BatchJob]:
    """BatchService.CancelJob."""
    return _of_job("CancelJob", batch_service_pb2.CancelJobRequest(), job_id, timeout_s)


def job_log(job_id: str, timeout_s: float | None) -> ApiCall[JobLog]:
    """BatchService.ReadJobLog."""
    request = batch_service_pb2.ReadJobLogRequest()
    set_fields(request, "", {"job_id": job_id})
    return ApiCall(batch_service_pb2_grpc.BatchServiceStub, "ReadJobLog", request, responses.job_log, timeout_s)


def watch_job(job_id: str, timeout_s: float | None) -> ApiCall[BatchJob]:
    """BatchService.WatchJob."""
    return _of_job("WatchJob", batch_service_pb2.WatchJobRequest(), job_id, timeout_s)


def list_jobs(page_size: int | None, page_token: str, timeout_s: float | None) -> ApiCall[BatchJobs]:
    """BatchService.ListJobs."""
    request = batch_service_pb2.ListJobsRequest()
    set_fields(request, "", {"page_size": page_size, "page_token": page_token})
    return ApiCall(batch_service_pb2_grpc.BatchServiceStub, "ListJobs", request, responses.batch_jobs, timeout_s)


def _of_job(method: str, request: Message, job_id: str, timeout_s: float | None) -> ApiCall[BatchJob]:
    set_fields(request, "", {"job_id": job_id})
    return ApiCall(batch_service_pb2_grpc.BatchServiceStub, method, request, responses.batch_job, timeout_s)


def admin(request: Message, timeout_s: float | None) -> ApiCall[Any]:
    """The method of AdminService that takes the request. The result is the response message."""
    method = request.DESCRIPTOR.name.removesuffix("Request")
    return ApiCall(admin_service_pb2_grpc.AdminServiceStub, method, request, lambda response: response, timeout_s)


def health(service: str, timeout_s: float | None) -> ApiCall[str]:
    """grpc.health.v1.Health.Check."""
    return ApiCall(health_pb2_grpc.HealthStub, "Check", health_pb2.HealthCheckRequest(service=service), responses.health, timeout_s)


_ROW_WORKS = {"generate": batch_service_pb2.ROW_WORK_GENERATE, "embed": batch_service_pb2.ROW_WORK_EMBED}
_TRUNCATIONS = {
    "keep_end": generation_pb2.TRUNCATION_KEEP_END,
    "keep_start": generation_pb2.TRUNCATION_KEEP_START,
}
_POOLINGS = {"last": inference_service_pb2.POOLING_LAST, "mean": inference_service_pb2.POOLING_MEAN}
_PRIORITIES = {
    "system": generation_pb2.PRIORITY_CLASS_SYSTEM,
    "interactive": generation_pb2.PRIORITY_CLASS_INTERACTIVE,
    "default": generation_pb2.PRIORITY_CLASS_DEFAULT,
    "bulk": generation_pb2.PRIORITY_CLASS_BULK,
}
_DEADLINE_BEHAVIORS = {
    "error": generation_pb2.DEADLINE_BEHAVIOR_UNSPECIFIED,
    "partial": generation_pb2.DEADLINE_BEHAVIOR_RETURN_PARTIAL,
}

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
)
_STOPPING = ("max_tokens", "min_tokens", "stop_token_ids", "ignore_eos", "include_stop_in_output")
_STRUCTURED_OUTPUTS = ("json_schema", "regex", "choice")
_COUNTS = ("n", "logprobs", "prompt_logprobs")


def _parameters(options: Mapping[str, Any]) -> generation_pb2.GenerationParameters:
    parameters = generation_pb2.GenerationParameters()
    set_fields(parameters.sampling, "parameters.sampling.", {name: options.get(name) for name in _SAMPLING})
    stop = options.get("stop")
    stopping = {name: options.get(name) for name in _STOPPING} | {"stop_sequences": [stop] if isinstance(stop, str) else stop}
    set_fields(parameters.stopping, "parameters.stopping.", stopping)
    set_fields(parameters, "parameters.", {name: options.get(name) for name in _COUNTS})
    set_fields(parameters, "parameters.", {"truncation": word(_TRUNCATIONS, "truncation", options)})
    set_fields(parameters, "parameters.", {"on_deadline": word(_DEADLINE_BEHAVIORS, "on_deadline", options)})
    _structured_output(parameters, {name: options[name] for name in _STRUCTURED_OUTPUTS if options.get(name) is not None})
    return parameters


def _structured_output(parameters: generation_pb2.GenerationParameters, structured_outputs: Mapping[str, Any]) -> None:
    path = "parameters.structured_output"
    if len(structured_outputs) > 1:
        raise invalid(path, f"at most one structured output may be given, got {', '.join(structured_outputs)}")
    for name, value in structured_outputs.items():
        if name == "choice":
            set_fields(parameters.structured_output.choice, f"{path}.choice.", {"texts": value})
        else:
            set_fields(parameters.structured_output, f"{path}.", {name: value if isinstance(value, str) else json.dumps(value)})


def _prompts(path: str, prompts: Prompt | Sequence[Prompt]) -> Iterable[generation_pb2.Prompt]:
    if isinstance(prompts, str) or _is_token_ids(prompts) or _is_chat(prompts):
        return [_prompt(f"{path}[0]", cast("Prompt", prompts))]
    return [_prompt(f"{path}[{position}]", cast("Prompt", prompt)) for position, prompt in enumerate(prompts)]


def _prompt(path: str, prompt: Prompt) -> generation_pb2.Prompt:
    message = generation_pb2.Prompt()
    if isinstance(prompt, str):
        set_fields(message, f"{path}.", {"text": prompt})
        return message
    if _is_chat(prompt):
        for position, chat_message in enumerate(prompt):
            set_fields(message.chat.messages.add(), f"{path}.chat.messages[{position}].", cast("Mapping[str, Any]", chat_message))
        return message
    message.token_ids.SetInParent()
    set_fields(message.token_ids, f"{path}.token_ids.", {"ids": prompt})
    return message


def _is_token_ids(value: Sequence[Any]) -> bool:
    return len(value) > 0 and isinstance(value[0], Integral)


def _is_chat(value: Sequence[Any]) -> bool:
    return len(value) > 0 and isinstance(value[0], Mapping)


def _identified(request: Any, options: CallOptions) -> Any:
    """Sets model and request id. Retries send the same id."""
    set_fields(request, "", {"request_id": options.get("request_id") or uuid.uuid4().hex, "model": options.get("model")})
    return request
