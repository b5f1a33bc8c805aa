"""Translates the settings into vLLM's engine arguments and checks them with vLLM's configuration classes. No weights are read."""

import dataclasses
from pathlib import Path
from typing import Any

from vllm.config import PoolerConfig, StructuredOutputsConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.usage.usage_lib import UsageContext

from neox_serve.core.types import Pool, Pooling
from neox_serve.engine.checks import max_model_len
from neox_serve.engine.hardware import Machine, dtype_for
from neox_serve.engine.pools import executor_backend
from neox_serve.engine.vllm.plugins.layers import final_layer_norm, overrides
from neox_serve.model import model_files
from neox_serve.settings import SettingsError
from neox_serve.settings.engines import EngineSettings
from neox_serve.settings.slices import EmbeddingOutputSettings, PoolEngineSettings

_RESERVED = frozenset(
    {
        "convert",
        "disable_log_stats",
        "enable_lora",
        "enable_prefix_caching",
        "kv_events_config",
        "model",
        "pooler_config",
        "runner",
        "skip_tokenizer_init",
        "stream_interval",
        "structured_outputs_config",
        "tokenizer",
    }
)
"""Arguments that extra_arguments must not contain: they have a setting of their own, or the engine relies on their value."""
_RESERVED_FOR_EMBEDDING = frozenset({"enable_chunked_prefill", "hf_overrides", "max_num_batched_tokens"})
_KNOWN = frozenset(field.name for field in dataclasses.fields(AsyncEngineArgs))


def build_engine_arguments(settings: PoolEngineSettings, folder: Path, machine: Machine) -> AsyncEngineArgs:
    """Returns vLLM's arguments for an engine on the checkpoint in a folder. Raises SettingsError that names the setting."""
    engine = settings.engine
    _check_names(settings.pool, engine)
    values: dict[str, Any] = {
        "model": str(folder),
        "tokenizer": str(folder),
        "served_model_name": settings.model.name,
        "dtype": dtype_for(engine.dtype, machine.cpu_flags, on_gpu=settings.on_gpu),
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "distributed_executor_backend": executor_backend(engine, settings.replicas),
        "quantization": engine.quantization,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "block_size": engine.block_size,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "enforce_eager": engine.enforce_eager if engine.enforce_eager is not None else not settings.on_gpu,
        # The engine's periodic log of its throughput. The Prometheus metrics stay.
        "disable_log_stats": True,
        # Sampling defaults are the API's, regardless of a checkpoint's generation_config.json.
        "generation_config": "vllm",
    }
    if settings.on_gpu:
        values["gpu_memory_utilization"] = engine.gpu_memory_utilization
    else:
        values["kv_cache_memory_bytes"] = int(engine.kv_cache_gib * 2**30)
    values |= _generation(settings) if settings.output is None else _embedding(engine, settings.output, folder)
    return AsyncEngineArgs(**(values | engine.extra_arguments))


def build_engine_config(pool: Pool, arguments: AsyncEngineArgs, *, offline: bool = False) -> VllmConfig:
    """Returns vLLM's configuration of an engine. Raises SettingsError with vLLM's message if vLLM rejects the arguments.

    With `offline` the defaults that vLLM chooses are those of its class `LLM`, for example larger steps.
    """
    try:
        return arguments.create_engine_config(UsageContext.LLM_CLASS if offline else UsageContext.ENGINE_CONTEXT)
    except (ValueError, NotImplementedError, AssertionError) as error:  # what vLLM raises; pydantic's error is a ValueError
        raise SettingsError(f"{pool.value}.engine: vLLM rejects these arguments: {error}") from error


def max_loaded_adapters(settings: PoolEngineSettings) -> int:
    """Returns the maximum number of adapters that are loaded at a time."""
    limit = settings.engine.max_loaded_loras
    return limit if settings.model.registry else min(limit, len(settings.model.adapters))


def _check_names(pool: Pool, engine: EngineSettings) -> None:
    prefix = f"{pool.value}.engine"
    for key in engine.extra_arguments:
        if key in _RESERVED or (pool is Pool.EMBEDDING and key in _RESERVED_FOR_EMBEDDING):
            raise SettingsError(
                f"{prefix}.extra_arguments.{key}: is not allowed: it has a setting of its own, or the engine relies on its value"
            )
        if key not in _KNOWN:
            raise SettingsError(f"{prefix}.extra_arguments.{key}: is not an argument of vLLM's engine")
    if engine.quantization is not None and engine.quantization not in QUANTIZATION_METHODS:
        raise SettingsError(f"{prefix}.quantization: {engine.quantization!r}: must be one of {', '.join(QUANTIZATION_METHODS)}")


def _generation(settings: PoolEngineSettings) -> dict[str, Any]:
    engine = settings.engine
    values: dict[str, Any] = {
        "runner": "generate",
        "max_logprobs": settings.max_logprobs,
        # A single backend, so that a grammar that compiled at admission also compiles in the engine core. No optional whitespace in JSON,
        # so that a model cannot produce whitespace forever.
        "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
    }
    if settings.model.adapters or settings.model.registry:
        count = max_loaded_adapters(settings)
        values |= {
            "enable_lora": True,
            # vLLM's CPU kernels mistake a request without adapter (slot -1) for one of the last slot, which therefore stays empty.
            "max_loras": min(engine.max_loras, count) if settings.on_gpu else count + 1,
            "max_cpu_loras": count if settings.on_gpu else count + 1,
            "max_lora_rank": engine.max_lora_rank,
        }
    return values


def _embedding(engine: EngineSettings, output: EmbeddingOutputSettings, folder: Path) -> dict[str, Any]:
    """Returns the arguments of an embedding engine.

    vLLM computes the default pooling itself. For the other pooling it returns the vectors of all tokens (task token_embed), which
    `pooling.py` pools. MEAN needs all tokens of an input in one step: an input that arrives in parts, because of chunked prefill or the
    prefix cache, ends vLLM's engine core ("partial prefill is not supported with MEAN pooling"). Both are therefore off, and a step has
    room for the longest input.
    """
    facts = model_files.read_facts(folder)
    values: dict[str, Any] = {
        "runner": "pooling",
        "convert": "embed",
        "pooler_config": PoolerConfig(seq_pooling_type=output.default_pooling.value.upper(), tok_pooling_type="ALL"),
    }
    if output.default_pooling is Pooling.MEAN:
        values |= {
            "enable_prefix_caching": False,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": engine.max_num_batched_tokens or max(max_model_len(engine, facts), engine.max_num_seqs),
        }
    layer, norm = output.layer or facts.layers, final_layer_norm(output, facts)
    if layer < facts.layers or not norm:
        values["hf_overrides"] = overrides(layer, facts.layers, final_layer_norm=norm)
    return values
