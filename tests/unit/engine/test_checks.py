"""Checks of engine settings against model and machine: each invalid setting is named with its value and the allowed values."""

from typing import Any

import pytest

from neox_serve.core.types import Pool
from neox_serve.engine import checks
from neox_serve.engine.hardware import Machine
from neox_serve.engine.vllm.plugins import layers
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import Settings, SettingsError, restore
from neox_serve.settings.engines import EmbeddingSettings
from neox_serve.settings.slices import EmbeddingOutputSettings, PoolEngineSettings
from tests.unit.engine.machines import AVX2, AVX512, GIB, LARGE, SMALL, settings_of
from tests.unit.model.test_facts import PUBLISHED_20B


def check(pool: Pool, settings: Settings, facts: ModelFacts, machine: Machine) -> None:
    checks.check(PoolEngineSettings.from_settings(settings, pool), facts, machine)


def problems(asked: Settings, facts: ModelFacts = SMALL, machine: Machine = AVX2, pool: Pool = Pool.GENERATION) -> str:
    with pytest.raises(SettingsError) as raised:
        check(pool, asked, facts, machine)
    return str(raised.value)


def test_check_defaults_on_a_small_machine_pass_for_both_pools() -> None:
    for pool in Pool:
        check(pool, settings_of(pool), SMALL, AVX2)


def test_check_of_a_layer_beyond_the_models_names_the_setting() -> None:
    asked = restore({"embedding": {"layer": 7}})
    assert problems(asked, pool=Pool.EMBEDDING) == "embedding.layer: 7: must be in [1, 6], the model's layers"
    check(Pool.GENERATION, asked, SMALL, AVX2)


def test_embedding_pool_loads_no_layer_above_its_own_and_needs_less_memory() -> None:
    asked = restore({"embedding": {"layer": 2}})
    assert layers.loaded_facts(PoolEngineSettings.from_settings(asked, Pool.EMBEDDING).output, SMALL).layers == 2
    assert layers.loaded_facts(PoolEngineSettings.from_settings(asked, Pool.GENERATION).output, SMALL).layers == 6
    whole, part = (restore({"embedding": {"layer": layer, "engine": {"kv_cache_gib": 1.0}}}) for layer in (44, 2))
    machine = Machine(frozenset({"avx2"}), cores=4, memory_bytes=16 * GIB)
    assert "the weights must fit" in problems(whole, LARGE, machine, Pool.EMBEDDING)
    check(Pool.EMBEDDING, part, LARGE, machine)


@pytest.mark.parametrize(
    ("embedding", "normed"),
    [
        ({}, True),
        ({"layer": 6}, True),
        ({"layer": 2}, False),
        ({"layer": 2, "final_layer_norm": True}, True),
        ({"final_layer_norm": False}, False),
    ],
)
def test_final_layer_norm_defaults_to_the_last_layer_only(embedding: dict[str, Any], normed: bool) -> None:
    assert layers.final_layer_norm(EmbeddingOutputSettings.from_section(EmbeddingSettings(**embedding)), SMALL) is normed


def test_check_20b_on_two_gpus_passes() -> None:
    check(Pool.GENERATION, settings_of(gpus=1, tensor_parallel_size=2), LARGE, Machine(frozenset(), 16, 64 * GIB, gpus=2))


@pytest.mark.parametrize(
    ("engine", "key", "allowed"),
    [
        ({"tensor_parallel_size": 3}, "tensor_parallel_size: 3", "4 attention heads"),
        ({"tensor_parallel_size": 8}, "tensor_parallel_size: 8", "must divide"),
        ({"pipeline_parallel_size": 4, "enforce_eager": False}, "pipeline_parallel_size: 4", "6 layers"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size: 2", "unless enforce_eager is false"),
        ({"executor_backend": "ray"}, "executor_backend: 'ray'", "auto, mp or uni"),
        ({"executor_backend": "uni", "tensor_parallel_size": 2}, "executor_backend: 'uni'", "exactly one"),
        ({"executor_backend": "uni", "cpu_threads_bind": "0-1"}, "cpu_threads_bind: '0-1'", "auto or nobind"),
        ({"max_model_len": 4096}, "max_model_len: 4096", "2048 positions"),
        ({"max_num_batched_tokens": 64}, "max_num_batched_tokens: 64", "max_num_seqs, 128"),
        ({"kv_cache_gib": 15}, "kv_cache_gib: 15", "16.0 GiB"),
        ({"kv_cache_gib": 0.001}, "kv_cache_gib: 0.001", "at least 0.023"),
        ({"dtype": "float16"}, "dtype: 'float16'", "without AVX-512"),
        ({"quantization": "gptq_marlin"}, "quantization: 'gptq_marlin'", "compressed-tensors"),
        ({"quantization": "gptq"}, "quantization: 'gptq'", "without AVX-512"),
        ({"cpu_threads_bind": "0|1"}, "cpu_threads_bind: '0|1'", "1 lists of cores"),
        ({"cpu_threads_bind": "all"}, "cpu_threads_bind: 'all'", "lists of cores"),
        ({"cpu_threads_bind": "0-7"}, "cpu_threads_bind: '0-7'", "the machine has 4"),
    ],
)
def test_check_of_an_invalid_setting_names_key_value_and_allowed_values(engine: dict[str, Any], key: str, allowed: str) -> None:
    text = problems(settings_of(**engine))
    assert f"generation.engine.{key}" in text
    assert allowed in text


def test_check_reports_all_invalid_settings_together() -> None:
    lines = problems(settings_of(tensor_parallel_size=3, max_model_len=9999)).splitlines()
    assert {line.split(":")[0].rpartition(".")[2] for line in lines} >= {"tensor_parallel_size", "max_model_len"}


def test_check_of_an_embedding_batch_smaller_than_an_input_fails() -> None:
    text = problems(settings_of(Pool.EMBEDDING, max_num_batched_tokens=1024), pool=Pool.EMBEDDING)
    assert text.startswith("embedding.engine.max_num_batched_tokens: 1024: must hold a whole input: at least 2048")


def test_check_of_20b_on_a_small_machine_fails() -> None:
    assert "kv_cache_gib" in problems(settings_of(kv_cache_gib=4), LARGE)


def test_check_of_heads_without_a_cpu_kernel_names_the_model() -> None:
    facts = ModelFacts.from_config(PUBLISHED_20B | {"num_hidden_layers": 1, "num_attention_heads": 16, "hidden_size": 256})
    assert problems(settings_of(), facts).startswith("model.source: attention heads of 16 dimensions")


def test_check_of_quantization_with_avx512_kernels_passes_with_avx512() -> None:
    check(Pool.GENERATION, settings_of(quantization="gptq"), SMALL, AVX512)


def test_check_of_a_fake_engine_always_passes() -> None:
    check(Pool.GENERATION, settings_of(kind="fake", tensor_parallel_size=3), SMALL, AVX2)
