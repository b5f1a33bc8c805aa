"""Sections on the model, and on the engines of each pool that run it."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from neox_serve.core.types import Pooling
from neox_serve.settings.sections import Section, node_resource

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class AdapterSettings(Section):
    """A LoRA adapter that requests may name."""

    name: str = Field(min_length=1, max_length=64, pattern=_NAME)
    path: str = Field(min_length=1, description="Folder with adapter_config.json: local, a URL of fsspec's such as s3://..., or a hub name")
    pinned: bool = Field(False, description="Loaded at the start and never unloaded for another")


class ModelSettings(Section):
    """Which checkpoint is served, under which name."""

    name: str = Field("neox-small", min_length=1, max_length=64, pattern=_NAME)
    source: str = Field("builtin", min_length=1, description='"builtin", a local folder, or a hub name such as EleutherAI/gpt-neox-20b')
    revision: str | None = None
    adapters: tuple[AdapterSettings, ...] = ()
    registry: Path | None = Field(
        None,
        description="Folder that all nodes see, in which fine-tuning jobs publish adapters: served as NAME, or as TENANT/NAME for one "
        "tenant, without a restart; absent: there are no such jobs",
    )

    @model_validator(mode="after")
    def _adapter_names_differ(self) -> "ModelSettings":
        names = [adapter.name for adapter in self.adapters]
        if len(set(names)) != len(names):
            raise ValueError(f"adapters: names must differ, got {names}")
        return self


class FakeEngineSettings(Section):
    """Timing of the fake engine, which answers without a model."""

    ttft_s: float = Field(0.02, ge=0)
    itl_s: float = Field(0.02, ge=0, description="Seconds between tokens at batch size 1")
    itl_per_request_s: float = Field(0.0, ge=0, description="Added to itl_s for each further request in the batch")
    stamp_text: bool = Field(
        False, description="Each token's text is the moment of its step (CLOCK_MONOTONIC seconds, 6 digits) and a space: to measure latency"
    )


class EngineSettings(Section):
    """How one engine replica runs the model. Checked against the model and the hardware before anything is loaded (engine/arguments.py)."""

    kind: Literal["vllm", "fake"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: by hardware")
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    pipeline_parallel_size: int = Field(1, ge=1, le=64)
    executor_backend: Literal["auto", "mp", "ray", "uni"] = Field(
        "auto", description="auto: uni for one worker on CPUs, mp on one node, ray across nodes"
    )
    quantization: str | None = None
    max_model_len: int | None = Field(None, ge=8, description="Context; default: the model's positions")
    max_num_seqs: int = Field(128, ge=1, le=4096, description="Most sequences in a batch")
    max_num_batched_tokens: int | None = Field(None, ge=8)
    kv_cache_gib: float = Field(0.5, gt=0, description="KV cache of each CPU worker; on GPUs gpu_memory_utilization rules")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    block_size: int | None = Field(None, ge=1, le=256)
    enable_prefix_caching: bool = True
    report_prefix_cache: bool = Field(True, description="Tell the router what the prefix cache holds, for router.policy kv-aware")
    enforce_eager: bool | None = Field(None, description="No compilation; default: true on CPU, false on GPU")
    cpu_threads_bind: str = Field(
        "auto", description='OpenMP cores of each CPU worker as vLLM takes them, such as "0|1"; auto: shared out evenly'
    )
    max_loras: int = Field(4, ge=1, le=64, description="Adapters in one batch; on CPU all that are loaded")
    max_loaded_loras: int = Field(8, ge=1, le=1024, description="Adapters kept loaded; the least recently used leaves first")
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256] = 16
    extra_arguments: dict[str, Any] = Field(default_factory=dict, description="Further vLLM engine arguments, as they are")
    fake: FakeEngineSettings = FakeEngineSettings()


class ReplicaSettings(Section):
    """How many replicas a pool has, and what each takes from the cluster."""

    initial: int = Field(1, ge=0)
    min: int = Field(1, ge=0)
    max: int = Field(1, ge=1)
    max_requests: int = Field(256, ge=1, description="Requests in flight beyond which a replica takes no more")
    num_cpus: float = Field(0.0, ge=0)
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs each tensor- or pipeline-parallel worker takes; 0: CPU")
    drain_timeout_s: float = Field(120.0, gt=0, description="Longest time a leaving replica works on what it has")
    start_timeout_s: float = Field(1200.0, gt=0)
    node_resource: str | None = node_resource()

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> "ReplicaSettings":
        if not self.min <= self.initial <= self.max:
            raise ValueError(f"replicas must satisfy min <= initial <= max, got {self.min}, {self.initial}, {self.max}")
        return self


class GenerationSettings(Section):
    """The generation pool."""

    engine: EngineSettings = EngineSettings()
    replicas: ReplicaSettings = ReplicaSettings()


class EmbeddingSettings(Section):
    """The embedding pool."""

    enabled: bool = True
    default_pooling: Pooling = Pooling.MEAN
    layer: int | None = Field(
        None, ge=1, description="Vectors are of this layer's output, the first being 1; those above are not loaded; absent: the last"
    )
    final_layer_norm: bool | None = Field(
        None, description="Whether the model's final layer norm is applied to it; absent: to the last layer's output alone"
    )
    engine: EngineSettings = EngineSettings()
    replicas: ReplicaSettings = ReplicaSettings()
