"""The environment variables of an engine's process. vLLM reads some of its settings only from there, when it is imported."""

from neox_serve.engine.hardware import Machine, dtype_for, this_machine
from neox_serve.engine.pools import executor_backend
from neox_serve.engine.vllm.plugins import kernels
from neox_serve.model import model_files
from neox_serve.settings.engines import EngineSettings
from neox_serve.settings.slices import PoolEngineSettings

_FEW_CORES = 8
_VLLM_LOG_LEVEL = {"debug": "DEBUG", "info": "WARNING", "warning": "WARNING", "error": "ERROR"}


def engine_environment(settings: PoolEngineSettings, machine: Machine | None = None) -> dict[str, str]:
    """Returns the variables that a process must have before it calls `start_engine`, which imports torch and vLLM.

    `machine` is the node that the engine will run on; None stands for this one.
    """
    engine = settings.engine
    if engine.kind == "fake":
        return {}
    environment = {
        "VLLM_LOGGING_LEVEL": _VLLM_LOG_LEVEL[settings.log.level],
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not settings.on_gpu:
        environment |= _cpu_environment(engine, machine or this_machine())
        if executor_backend(engine, settings.replicas) == "uni":
            # vLLM's CPU platform keeps the worker in the engine core's process only if this variable is 0. AsyncLLM does not read it.
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if model_files.is_local(settings.model.source) and all(model_files.is_local(adapter.path) for adapter in settings.model.adapters):
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return environment


def threads_bind(engine: EngineSettings, cores: int) -> str:
    """Returns the CPU cores of each CPU worker in the format of VLLM_CPU_OMP_THREADS_BIND.

    "auto" leaves a single worker unbound, because an engine of the other pool may run beside it. Several workers get separate cores,
    because they wait for each other at every layer.
    """
    if engine.cpu_threads_bind != "auto":
        return engine.cpu_threads_bind
    if engine.workers == 1 or cores < engine.workers:
        return "nobind"
    share = cores // engine.workers
    return "|".join(",".join(str(core) for core in range(worker * share, (worker + 1) * share)) for worker in range(engine.workers))


def _cpu_environment(engine: EngineSettings, machine: Machine) -> dict[str, str]:
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": threads_bind(engine, machine.cores),
        # Without this variable Ray gives a process one thread, and each unbound worker uses one thread per core of the machine.
        "OMP_NUM_THREADS": str(max(1, machine.cores // engine.workers)),
    }
    if disabled := _disabled_kernels(engine, machine):
        environment["VLLM_DISABLED_KERNELS"] = ",".join(disabled)
    if machine.cores <= _FEW_CORES:
        # Threads that spin while they wait for each other occupy the cores that gateways, router and the other engine need. On 2 busy cores
        # with 32 streams of the built-in model: 210 tok/s with spinning threads, 790 tok/s with sleeping ones.
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    if engine.enforce_eager is not False:
        # Otherwise two small functions of the sampler are compiled with g++ on first use, which stops the whole batch for 30 s.
        environment["TORCHDYNAMO_DISABLE"] = "1"
    return environment


def _disabled_kernels(engine: EngineSettings, machine: Machine) -> list[str]:
    """Returns the names of vLLM's kernels that do not work on this CPU, so that vLLM uses ours instead."""
    disabled = []
    if "avx512f" not in machine.cpu_flags or dtype_for(engine.dtype, machine.cpu_flags, on_gpu=False) == "float32":
        disabled.append(kernels.VLLM_INT4_KERNEL)
    if "amx_tile" in machine.cpu_flags:
        disabled.append(kernels.VLLM_INT8_KERNEL)
    return disabled
