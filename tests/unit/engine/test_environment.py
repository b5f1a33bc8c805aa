"""The environment variables of an engine's process."""

from typing import Any

import pytest

from neox_serve.core.types import Pool
from neox_serve.engine.environment import engine_environment, threads_bind
from neox_serve.engine.hardware import Machine
from neox_serve.settings import Settings
from neox_serve.settings.engines import EngineSettings
from neox_serve.settings.slices import PoolEngineSettings
from tests.unit.engine.machines import AVX2, settings_of


def environment_of(settings: Settings, machine: Machine = AVX2) -> dict[str, str]:
    return engine_environment(PoolEngineSettings.from_settings(settings, Pool.GENERATION), machine)


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
    environment = environment_of(settings_of())
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment["OMP_NUM_THREADS"] == "4"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in environment_of(settings_of(executor_backend="mp"))


def test_environment_disables_vllms_4_bit_kernel_on_cpus_that_it_does_not_support() -> None:
    with_avx512 = Machine(AVX2.cpu_flags | {"avx512f", "avx512_bf16"}, AVX2.cores, AVX2.memory_bytes)
    assert environment_of(settings_of())["VLLM_DISABLED_KERNELS"] == "CPUWNA16LinearKernel"
    assert environment_of(settings_of(dtype="float32"), with_avx512)["VLLM_DISABLED_KERNELS"] == "CPUWNA16LinearKernel"
    assert "VLLM_DISABLED_KERNELS" not in environment_of(settings_of(dtype="bfloat16"), with_avx512)


def test_environment_disables_vllms_8_bit_kernel_on_cpus_with_amx() -> None:
    with_amx = Machine(AVX2.cpu_flags | {"avx512f", "amx_tile"}, AVX2.cores, AVX2.memory_bytes)
    disabled = environment_of(settings_of(dtype="float32"), with_amx)["VLLM_DISABLED_KERNELS"]
    assert disabled == "CPUWNA16LinearKernel,CPUInt8ScaledMMLinearKernel"


def test_environment_lets_waiting_threads_sleep_on_machines_with_few_cores() -> None:
    many = Machine(AVX2.cpu_flags, cores=64, memory_bytes=AVX2.memory_bytes)
    assert environment_of(settings_of())["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in environment_of(settings_of(), many)


def test_environment_of_a_hub_model_on_gpus_is_online_and_has_no_cpu_variables() -> None:
    environment = environment_of(settings_of(gpus=1, model={"source": "EleutherAI/gpt-neox-20b"}))
    assert "HF_HUB_OFFLINE" not in environment
    assert not any("OMP" in name for name in environment)


def test_environment_of_a_fake_engine_is_empty() -> None:
    assert environment_of(settings_of(kind="fake")) == {}
