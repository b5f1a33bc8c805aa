"""Our settings as vLLM's engine arguments, checked by vLLM's own configuration classes. No weights are read."""

import dataclasses
from pathlib import Path
from typing import Any

from vllm.config import PoolerConfig, StructuredOutputsConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.usage.usage_lib import UsageContext

from neox_serve.core.types import Pool, Pooling
from neox_serve.engine.arguments import max_model_len
from neox_serve.engine.hardware import Machine, dtype_for
from neox_serve.engine.pools import engine_settings, executor_backend, on_gpu, replica_settings
from neox_serve.engine.vllm.plugins.layers import final_layer_norm, overrides
from neox_serve.model import model_files
from neox_serve.settings import Settings, SettingsError
from neox_serve.settings.engines import EngineSettings

# What must not be given as an extra argument: it has a setting of its own, or the engine relies on it.
_OURS = frozenset(
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
_OURS_OF_EMBEDDING = frozenset({"enable_chunked_prefill", "hf_overrides", "max_num_batched_tokens"})
_KNOWN = frozenset(field.name for field in dataclasses.fields(AsyncEngineArgs))


def build_engine_arguments(pool: Pool, settings: Settings, folder: Path, machine: Machine) -> AsyncEngineArgs:
    """vLLM's arguments for a pool's engine on the checkpoint in a folder. Raises SettingsError naming the setting."""
    engine = engine_settings(pool, settings)
    _check_names(pool, engine)
    gpu = on_gpu(pool, settings)
    values: dict[str, Any] = {
        "model": str(folder),
        "tokenizer": str(folder),
        "served_model_name": settings.model.name,
        "dtype": dtype_for(engine.dtype, machine.cpu_flags, on_gpu=gpu),
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "distributed_executor_backend": executor_backend(engine, replica_settings(pool, settings)),
        "quantization": engine.quantization,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "block_size": engine.block_size,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "enforce_eager": engine.enforce_eager if engine.enforce_eager is not None else not gpu,
        # The engine's own log of its throughput; the Prometheus metrics stay.
        "disable_log_stats": True,
        # Sampling defaults are the API's, whatever a checkpoint's generation_config.json says.
        "generation_config": "vllm",
    }
    values |= (
        {"gpu_memory_utilization": engine.gpu_memory_utilization} if gpu else {"kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30)}
    )
    values |= _generation(settings, engine, gpu=gpu) if pool is Pool.GENERATION else _embedding(settings, folder, engine)
    return AsyncEngineArgs(**(values | engine.extra_arguments))


def build_engine_config(pool: Pool, settings: Settings, arguments: AsyncEngineArgs, *, offline: bool = False) -> VllmConfig:
    """vLLM's configuration of an engine. offline: nobody reads along; vLLM's own choices are then those of its `LLM`, such as larger steps.

    Raises SettingsError with vLLM's own words where it refuses.
    """
    try:
        return arguments.create_engine_config(UsageContext.LLM_CLASS if offline else UsageContext.ENGINE_CONTEXT)
    except (ValueError, NotImplementedError, AssertionError) as error:  # vLLM's ways to refuse; pydantic's is a ValueError
        raise SettingsError(f"{pool.value}.engine: vLLM refuses these arguments: {error}") from error


def _check_names(pool: Pool, engine: EngineSettings) -> None:
    prefix = f"{pool.value}.engine"
    for key in engine.extra_arguments:
        if key in _OURS or (pool is Pool.EMBEDDING and key in _OURS_OF_EMBEDDING):
            raise SettingsError(
                f"{prefix}.extra_arguments.{key}: cannot be given here: it has a setting of its own, or the engine relies on it"
            )
        if key not in _KNOWN:
            raise SettingsError(f"{prefix}.extra_arguments.{key}: is no argument of vLLM's engine")
    if engine.quantization is not None and engine.quantization not in QUANTIZATION_METHODS:
        raise SettingsError(f"{prefix}.quantization: {engine.quantization!r}: must be one of {', '.join(QUANTIZATION_METHODS)}")


def loaded_adapters(settings: Settings, engine: EngineSettings) -> int:
    """The most adapters that are loaded at a time."""
    return engine.max_loaded_loras if settings.model.registry else min(engine.max_loaded_loras, len(settings.model.adapters))


def _generation(settings: Settings, engine: EngineSettings, *, gpu: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        "runner": "generate",
        "max_logprobs": max(settings.limits.logprobs, 2 * settings.limits.beam_width),
        # One backend, so that what was checked at admission is what the engine core compiles; no space where JSON needs none, so that a
        # model cannot go on with spaces forever.
        "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
    }
    if settings.model.adapters or settings.model.registry:
        count = loaded_adapters(settings, engine)
        values |= {
            "enable_lora": True,
            # vLLM's CPU kernels take a base request beside adapted ones (slot -1) for the last slot, which therefore stays empty.
            "max_loras": min(engine.max_loras, count) if gpu else count + 1,
            "max_cpu_loras": count if gpu else count + 1,
            "max_lora_rank": engine.max_lora_rank,
        }
    return values


def _embedding(settings: Settings, folder: Path, engine: EngineSettings) -> dict[str, Any]:
    """The default pooling is vLLM's own; for the other one it returns all token vectors (task token_embed) and we pool.

    MEAN needs every token of an input in one step: an input that came in parts, by chunked prefill or from the prefix cache, ends vLLM's
    engine core ("partial prefill is not supported with MEAN pooling"). So both are off then, and a step has room for the longest input.
    """
    pooling = settings.embedding.default_pooling
    values: dict[str, Any] = {
        "runner": "pooling",
        "convert": "embed",
        "pooler_config": PoolerConfig(seq_pooling_type=pooling.value.upper(), tok_pooling_type="ALL"),
    }
    if pooling is Pooling.MEAN:
        longest = max_model_len(engine, model_files.read_facts(folder))
        values |= {
            "enable_prefix_caching": False,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": engine.max_num_batched_tokens or max(longest, engine.max_num_seqs),
        }
    facts = model_files.read_facts(folder)
    layer, norm = settings.embedding.layer or facts.layers, final_layer_norm(settings, facts)
    if layer < facts.layers or not norm:
        values["hf_overrides"] = overrides(layer, facts.layers, final_layer_norm=norm)
    return values
