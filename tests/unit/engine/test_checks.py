"""Checks of engine settings against model and machine: each invalid setting is named with its value and the allowed values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from neox_serve.core.types import Pool
from neox_serve.engine import checks
from neox_serve.engine.adapter_checks import configured_adapter_problems
from neox_serve.engine.environment import engine_environment, threads_bind
from neox_serve.engine.hardware import Machine, dtype_for, this_machine
from neox_serve.engine.pools import executor_backend
from neox_serve.engine.vllm.plugins import layers
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import Settings, SettingsError, restore
from neox_serve.settings.engines import EmbeddingSettings, EngineSettings, ReplicaSettings
from neox_serve.settings.slices import EmbeddingOutputSettings, PoolEngineSettings
from tests.unit.model.test_facts import PUBLISHED_20B

GIB = 1 << 30
AVX2 = Machine(frozenset({"avx2"}), cores=4, memory_bytes=16 * GIB)
AVX512 = Machine(frozenset({"avx2", "avx512f", "avx512_bf16"}), cores=4, memory_bytes=16 * GIB)
SMALL = ModelFacts.from_config(
    PUBLISHED_20B | {"num_hidden_layers": 6, "num_attention_heads": 4, "hidden_size": 256, "intermediate_size": 1024, "vocab_size": 4096}
)
LARGE = ModelFacts.from_config(PUBLISHED_20B)


def settings(pool: Pool = Pool.GENERATION, *, gpus: float = 0.0, model: dict[str, Any] | None = None, **engine: Any) -> Settings:
    return restore({"model": model or {}, pool.value: {"engine": engine, "replicas": {"gpus_per_worker": gpus}}})


def check(pool: Pool, settings: Settings, facts: ModelFacts, machine: Machine) -> None:
    checks.check(PoolEngineSettings.from_settings(settings, pool), facts, machine)


def environment_of(settings: Settings, machine: Machine = AVX2) -> dict[str, str]:
    return engine_environment(PoolEngineSettings.from_settings(settings, Pool.GENERATION), machine)


def problems(asked: Settings, facts: ModelFacts = SMALL, machine: Machine = AVX2, pool: Pool = Pool.GENERATION) -> str:
    with pytest.raises(SettingsError) as raised:
        check(pool, asked, facts, machine)
    return str(raised.value)


def test_check_defaults_on_a_small_machine_pass_for_both_pools() -> None:
    for pool in Pool:
        check(pool, settings(pool), SMALL, AVX2)


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
    check(Pool.GENERATION, settings(gpus=1, tensor_parallel_size=2), LARGE, Machine(frozenset(), 16, 64 * GIB, gpus=2))


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
    text = problems(settings(**engine))
    assert f"generation.engine.{key}" in text
    assert allowed in text


def test_check_reports_all_invalid_settings_together() -> None:
    lines = problems(settings(tensor_parallel_size=3, max_model_len=9999)).splitlines()
    assert {line.split(":")[0].rpartition(".")[2] for line in lines} >= {"tensor_parallel_size", "max_model_len"}


def test_check_of_an_embedding_batch_smaller_than_an_input_fails() -> None:
    text = problems(settings(Pool.EMBEDDING, max_num_batched_tokens=1024), pool=Pool.EMBEDDING)
    assert text.startswith("embedding.engine.max_num_batched_tokens: 1024: must hold a whole input: at least 2048")


def test_check_of_20b_on_a_small_machine_fails() -> None:
    assert "kv_cache_gib" in problems(settings(kv_cache_gib=4), LARGE)


def test_check_of_heads_without_a_cpu_kernel_names_the_model() -> None:
    facts = ModelFacts.from_config(PUBLISHED_20B | {"num_hidden_layers": 1, "num_attention_heads": 16, "hidden_size": 256})
    assert problems(settings(), facts).startswith("model.source: attention heads of 16 dimensions")


def test_check_of_quantization_with_avx512_kernels_passes_with_avx512() -> None:
    check(Pool.GENERATION, settings(quantization="gptq"), SMALL, AVX512)


def test_check_of_a_fake_engine_always_passes() -> None:
    check(Pool.GENERATION, settings(kind="fake", tensor_parallel_size=3), SMALL, AVX2)


MakeAdapter = Callable[..., Path]


@pytest.fixture
def adapter(tmp_path: Path) -> MakeAdapter:
    def make(*, rank: int = 8, hidden: int = 256, config: dict[str, Any] | None = None) -> Path:
        name = "base_model.model.gpt_neox.layers.0.attention.query_key_value"
        shapes = {f"{name}.lora_A.weight": (rank, hidden), f"{name}.lora_B.weight": (3 * hidden, rank)}
        save_file({key: np.zeros(shape, np.float32) for key, shape in shapes.items()}, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank} if config is None else config))
        return tmp_path

    return make


def adapter_problems(path: str) -> str:
    chosen = settings(model={"adapters": [{"name": "a", "path": path}]})
    return "\n".join(configured_adapter_problems(chosen.model, SMALL, chosen.generation.engine.max_lora_rank))


def test_check_of_a_matching_adapter_passes(adapter: MakeAdapter) -> None:
    assert adapter_problems(str(adapter())) == ""


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ({"rank": 32}, "rank r 32: must be 1 to max_lora_rank, 16"),
        ({"hidden": 512}, "it was made for another base model"),
        ({"config": {}}, "rank r None"),
        ({"config": {"r": "8"}}, "rank r '8'"),
    ],
)
def test_check_of_an_unusable_adapter_names_its_path(adapter: MakeAdapter, made: dict[str, Any], complaint: str) -> None:
    text = adapter_problems(str(adapter(**made)))
    assert text.startswith("model.adapters.0.path: ")
    assert complaint in text


def test_check_of_a_missing_adapter_folder_names_its_path() -> None:
    assert "model.adapters.0.path: '/no/such': is not a folder" in adapter_problems("/no/such")


@pytest.mark.parametrize(
    ("wanted", "flags", "on_gpu", "dtype"),
    [
        ("auto", {"avx2"}, False, "float32"),
        ("auto", {"avx2", "avx512f"}, False, "float32"),
        ("auto", {"avx512_bf16"}, False, "bfloat16"),
        ("auto", {"amx_bf16"}, False, "bfloat16"),
        ("float32", {"amx_bf16"}, False, "float32"),
        ("auto", {"avx2"}, True, "auto"),
    ],
)
def test_dtype_follows_the_cpu(wanted: str, flags: set[str], on_gpu: bool, dtype: str) -> None:
    assert dtype_for(wanted, flags, on_gpu=on_gpu) == dtype


@pytest.mark.parametrize(
    ("engine", "cores", "bind"),
    [
        ({}, 4, "nobind"),
        ({"tensor_parallel_size": 2}, 4, "0,1|2,3"),
        ({"tensor_parallel_size": 2}, 1, "nobind"),
        ({"cpu_threads_bind": "0"}, 4, "0"),
    ],
)
def test_threads_bind_gives_each_of_several_workers_separate_cores(engine: dict[str, Any], cores: int, bind: str) -> None:
    assert threads_bind(EngineSettings(**engine), cores) == bind


def test_environment_of_a_cpu_engine_has_all_variables_that_vllm_reads() -> None:
    environment = environment_of(settings())
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment["OMP_NUM_THREADS"] == "4"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in environment_of(settings(executor_backend="mp"))


@pytest.mark.parametrize(
    ("engine", "gpus", "backend"),
    [
        ({}, 0, "uni"),
        ({"cpu_threads_bind": "0-1"}, 0, "mp"),
        ({"tensor_parallel_size": 2}, 0, "mp"),
        ({"tensor_parallel_size": 8}, 1, "mp"),
        ({"tensor_parallel_size": 8, "pipeline_parallel_size": 2}, 1, "ray"),
        ({"executor_backend": "mp"}, 0, "mp"),
    ],
)
def test_executor_backend_depends_on_workers_and_hardware(engine: dict[str, Any], gpus: int, backend: str) -> None:
    assert executor_backend(EngineSettings(**engine), ReplicaSettings(gpus_per_worker=gpus)) == backend


def test_environment_disables_vllms_4_bit_kernel_on_cpus_that_it_does_not_support() -> None:
    with_avx512 = Machine(AVX2.cpu_flags | {"avx512f", "avx512_bf16"}, AVX2.cores, AVX2.memory_bytes)
    assert environment_of(settings())["VLLM_DISABLED_KERNELS"] == "CPUWNA16LinearKernel"
    assert environment_of(settings(dtype="float32"), with_avx512)["VLLM_DISABLED_KERNELS"] == "CPUWNA16LinearKernel"
    assert "VLLM_DISABLED_KERNELS" not in environment_of(settings(dtype="bfloat16"), with_avx512)


def test_environment_lets_waiting_threads_sleep_on_machines_with_few_cores() -> None:
    many = Machine(AVX2.cpu_flags, cores=64, memory_bytes=AVX2.memory_bytes)
    assert environment_of(settings())["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in environment_of(settings(), many)


def test_environment_of_a_hub_model_on_gpus_is_online_and_has_no_cpu_variables() -> None:
    environment = environment_of(settings(gpus=1, model={"source": "EleutherAI/gpt-neox-20b"}))
    assert "HF_HUB_OFFLINE" not in environment
    assert not any("OMP" in name for name in environment)


def test_environment_of_a_fake_engine_is_empty() -> None:
    assert environment_of(settings(kind="fake")) == {}


def test_this_machine_has_cores_and_memory() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_gib > 0.1
