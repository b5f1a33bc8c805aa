"""The environment an engine's process needs. vLLM reads some of its settings only from there, when it is imported."""

from neox_serve.core.types import Pool
from neox_serve.engine.hardware import Machine, dtype_for, this_machine
from neox_serve.engine.pools import engine_settings, executor_backend, on_gpu, replica_settings
from neox_serve.engine.vllm.plugins import int4
from neox_serve.model import model_files
from neox_serve.settings import Settings
from neox_serve.settings.engines import EngineSettings

_FEW_CORES = 8
_VLLM_LOG_LEVEL = {"debug": "DEBUG", "info": "WARNING", "warning": "WARNING", "error": "ERROR"}


def engine_environment(pool: Pool, settings: Settings, machine: Machine | None = None) -> dict[str, str]:
    """Variables that a process must have before it calls `start_engine`, which imports torch and vLLM.

    machine: the node the engine will run on; None: this one.
    """
    engine = engine_settings(pool, settings)
    if engine.kind == "fake":
        return {}
    environment = {
        "VLLM_LOGGING_LEVEL": _VLLM_LOG_LEVEL[settings.log.level],
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not on_gpu(pool, settings):
        environment |= _cpu_environment(engine, machine or this_machine())
        if executor_backend(engine, replica_settings(pool, settings)) == "uni":
            # Only with this variable at 0 does the CPU platform keep the worker in the engine core's process. AsyncLLM does not read it.
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if model_files.is_local(settings.model.source) and all(model_files.is_local(adapter.path) for adapter in settings.model.adapters):
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return environment


def threads_bind(engine: EngineSettings, cores: int) -> str:
    """Cores of each CPU worker, as vLLM takes them.

    "auto" gives one worker all cores and leaves their use to the operating system, because another pool's engine may run beside it;
    several workers, which wait for each other at every layer, get cores of their own.
    """
    workers = engine.tensor_parallel_size * engine.pipeline_parallel_size
    if engine.cpu_threads_bind != "auto":
        return engine.cpu_threads_bind
    if workers == 1 or cores < workers:
        return "nobind"
    share = cores // workers
    return "|".join(",".join(str(core) for core in range(worker * share, (worker + 1) * share)) for worker in range(workers))


def _cpu_environment(engine: EngineSettings, machine: Machine) -> dict[str, str]:
    workers = engine.tensor_parallel_size * engine.pipeline_parallel_size
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": threads_bind(engine, machine.cores),
        # Without it Ray gives a process one thread, and unbound workers take a thread for each core of the machine.
        "OMP_NUM_THREADS": str(max(1, machine.cores // workers)),
    }
    if "avx512f" not in machine.cpu_flags or dtype_for(engine.dtype, machine.cpu_flags, on_gpu=False) == "float32":
        environment["VLLM_DISABLED_KERNELS"] = int4.VLLMS_OWN
    if machine.cores <= _FEW_CORES:
        # Threads that spin while they wait for each other take the cores that gateways, router and the other engine need. On 2 busy cores
        # with 32 streams of the built-in model: 210 tok/s spinning, 790 sleeping.
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    if engine.enforce_eager is not False:
        # Two small functions of the sampler are compiled with g++ on their first use: 30 s in which the whole batch stands still.
        environment["TORCHDYNAMO_DISABLE"] = "1"
    return environment
