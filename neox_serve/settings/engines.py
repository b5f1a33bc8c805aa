"""Sections about the model, and about the pools of engine replicas that run it."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from neox_serve.core.types import Pooling
from neox_serve.settings.sections import Section, node_resource

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class AdapterSettings(Section):
    """A LoRA adapter that requests can select by name."""

    name: str = Field(min_length=1, max_length=64, pattern=_NAME, description="Name by which requests select the adapter.")
    path: str = Field(
        min_length=1,
        description="Folder that contains adapter_config.json: a local path, an fsspec URL such as s3://bucket/adapter, or the name of a "
        "Hugging Face Hub repository.",
    )
    pinned: bool = Field(False, description="Whether the adapter is loaded when a replica starts and never unloaded in favour of another.")


class ModelSettings(Section):
    """The checkpoint to serve, and its adapters."""

    name: str = Field("neox-small", min_length=1, max_length=64, pattern=_NAME, description="Name by which requests select the model.")
    source: str = Field(
        "builtin",
        min_length=1,
        description="Checkpoint: `builtin` (a small model that is part of neox-serve), a local folder, or the name of a Hugging Face Hub "
        "repository such as EleutherAI/gpt-neox-20b.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub repository. Unset: its default branch.")
    adapters: tuple[AdapterSettings, ...] = Field((), description="LoRA adapters that requests can select.")
    registry: Path | None = Field(
        None,
        description="Folder, shared by all nodes, in which fine-tuning jobs publish adapters. They are served as NAME, or as TENANT/NAME "
        "for a single tenant, without a restart. Unset: fine-tuning jobs are not accepted.",
    )

    @model_validator(mode="after")
    def _check_adapter_names(self) -> "ModelSettings":
        names = [adapter.name for adapter in self.adapters]
        if len(set(names)) != len(names):
            raise ValueError(f"adapters: names must be unique, got {names}")
        return self


class FakeEngineSettings(Section):
    """Timing of the fake engine, which produces text without a model."""

    ttft_s: float = Field(0.02, ge=0, description="Time to first token, in seconds.")
    itl_s: float = Field(0.02, ge=0, description="Inter-token latency (ITL), in seconds, at batch size 1.")
    itl_per_request_s: float = Field(
        0.0, ge=0, description="Seconds that each further request in the batch adds to the inter-token latency."
    )
    timestamp_text: bool = Field(
        False,
        description="Whether the text of each token is the time of its step (CLOCK_MONOTONIC, in seconds with 6 digits) and a space. "
        "Benchmarks use it to measure latency.",
    )


class EngineSettings(Section):
    """How one engine replica runs the model. The values are checked against the model and the hardware before anything is loaded."""

    kind: Literal["vllm", "fake"] = Field("vllm", description="Engine: vLLM, or the fake engine, which needs no model and no GPU.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Data type of weights and activations. `auto`: the checkpoint's type on GPUs; on CPUs bfloat16 if the CPU computes it "
        "natively, otherwise float32.",
    )
    tensor_parallel_size: int = Field(1, ge=1, le=64, description="Number of workers that share each layer.")
    pipeline_parallel_size: int = Field(1, ge=1, le=64, description="Number of consecutive groups of layers, each with its own workers.")
    executor_backend: Literal["auto", "mp", "ray", "uni"] = Field(
        "auto",
        description="How vLLM runs its workers: `uni` in the engine's process, `mp` as local processes, `ray` across nodes. `auto`: `uni` "
        "for a single CPU worker, `ray` for more GPU workers than one node has, otherwise `mp`.",
    )
    quantization: str | None = Field(
        None, description="Quantization method, one of vLLM's. Unset: the method that the checkpoint's config.json names, if any."
    )
    max_model_len: int | None = Field(
        None, ge=8, description="Maximum context length: prompt and output tokens of one request. Unset: the model's number of positions."
    )
    max_num_seqs: int = Field(128, ge=1, le=4096, description="Maximum number of sequences in a batch.")
    max_num_batched_tokens: int | None = Field(
        None, ge=8, description="Maximum number of tokens that one engine step processes. Unset: vLLM's default."
    )
    kv_cache_gib: float = Field(
        0.5, gt=0, description="Size of the KV cache of each CPU worker, in GiB. Ignored on GPUs; see gpu_memory_utilization."
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Fraction of each GPU's memory that a worker uses for weights, activations and KV cache."
    )
    block_size: int | None = Field(None, ge=1, le=256, description="Tokens per KV cache block. Unset: vLLM's default for the hardware.")
    enable_prefix_caching: bool = Field(
        True, description="Whether requests with a common prefix reuse its KV blocks. Off for embeddings with pooling MEAN."
    )
    report_prefix_cache: bool = Field(
        True, description="Whether replicas report their cached KV blocks to the router, which router.policy `kv-aware` requires."
    )
    enforce_eager: bool | None = Field(
        None, description="Whether to run the model without compilation and CUDA graphs. Unset: true on CPUs, false on GPUs."
    )
    cpu_threads_bind: str = Field(
        "auto",
        description='CPU cores of each CPU worker in the format of VLLM_CPU_OMP_THREADS_BIND, for example "0-3|4-7". '
        "`auto`: equal shares for several workers, unbound for one; `nobind`: unbound.",
    )
    max_loras: int = Field(
        4, ge=1, le=64, description="Maximum number of different LoRA adapters in one batch. Ignored on CPUs, which use max_loaded_loras."
    )
    max_loaded_loras: int = Field(
        8, ge=1, le=1024, description="Maximum number of adapters that a replica keeps loaded. The least recently used is unloaded first."
    )
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256] = Field(16, description="Maximum rank of a LoRA adapter.")
    extra_arguments: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of vLLM's AsyncEngineArgs, by name. They are passed on unchanged."
    )
    fake: FakeEngineSettings = Field(FakeEngineSettings(), description="Timing of the fake engine. Ignored unless kind is `fake`.")

    @property
    def workers(self) -> int:
        """Number of worker processes, each of which holds a part of the model."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class ReplicaSettings(Section):
    """The number of replicas of a pool, and the resources that each reserves in the Ray cluster."""

    initial: int = Field(1, ge=0, description="Number of replicas when the pool is first deployed.")
    min: int = Field(1, ge=0, description="Minimum number of replicas. 0 allows the pool to scale to zero.")
    max: int = Field(1, ge=1, description="Maximum number of replicas. If it equals min, the pool is not scaled.")
    max_requests: int = Field(256, ge=1, description="Maximum number of requests in progress in one replica.")
    num_cpus: float = Field(0.0, ge=0, description="CPUs that each replica reserves in Ray. 0 reserves none.")
    gpus_per_worker: float = Field(
        0.0, ge=0, description="GPUs that each tensor-parallel or pipeline-parallel worker reserves. 0 runs the engine on CPUs."
    )
    drain_timeout_s: float = Field(
        120.0, gt=0, description="Maximum time, in seconds, that a replica that shuts down continues to process its requests."
    )
    start_timeout_s: float = Field(
        1200.0, gt=0, description="Maximum time, in seconds, that `neox-serve up` and `apply` wait for the cluster to start."
    )
    node_resource: str | None = node_resource()

    @model_validator(mode="after")
    def _check_bounds(self) -> "ReplicaSettings":
        if not self.min <= self.initial <= self.max:
            raise ValueError(f"replicas must satisfy min <= initial <= max, got {self.min}, {self.initial}, {self.max}")
        return self


class GenerationSettings(Section):
    """The pool of replicas that generate text."""

    engine: EngineSettings = Field(EngineSettings(), description="How each replica runs the model.")
    replicas: ReplicaSettings = Field(ReplicaSettings(), description="Number and resources of the replicas.")


class EmbeddingSettings(Section):
    """The pool of replicas that compute embeddings."""

    enabled: bool = Field(True, description="Whether the pool exists. If not, embedding requests are rejected.")
    default_pooling: Pooling = Field(
        Pooling.MEAN, description="How token vectors become one vector, for requests that do not choose: their mean, or the last token's."
    )
    layer: int | None = Field(
        None,
        ge=1,
        description="Layer whose output is used, counted from 1. Layers above it are not loaded. Unset: the model's last layer.",
    )
    final_layer_norm: bool | None = Field(
        None, description="Whether the model's final layer norm is applied to the vectors. Unset: only if layer is the last layer."
    )
    engine: EngineSettings = Field(EngineSettings(), description="How each replica runs the model.")
    replicas: ReplicaSettings = Field(ReplicaSettings(), description="Number and resources of the replicas.")
