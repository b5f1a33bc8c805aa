"""Planning of a pool of replicas: the GPUs, the split of the model over them, the number of replicas for a load, and the cost.

Memory is computed from the model's shape (`model.memory`). Step times are those of GPT-NeoX-20B, fitted to measurements on A100-80GB and
scaled to H100-80GB (`autoscaling.simulator.calibration`). Other GPUs are scaled by their data sheets, and other models by their weights, KV
size and arithmetic. A replica's steps take F / (1 - rho), with F the time for reading the weights and rho the fraction of its time that
goes to the work of requests (Little's law).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoscaling.simulator.calibration import FITTED
from neox_serve.model.facts import ModelFacts
from neox_serve.model.memory import Quantization, kv_bytes_per_token, kv_tokens_that_fit, parameters, weight_bytes
from neox_serve.model.step_time import StepTime

GIB = 1 << 30
"""Bytes in a GiB."""
_OVERHEAD_BYTES = 1.5 * GIB
"""Memory of each GPU that activations, CUDA graphs and the runtime take."""
_STEP_TOKENS = 512
_MAX_SEQUENCES = 256
_VOCABULARY_PADDING = 64

NEOX_20B = ModelFacts(
    layers=44,
    heads=64,
    hidden_size=6144,
    intermediate_size=24_576,
    vocabulary_size=50_432,
    positions=2048,
    rotary_fraction=0.25,
    parallel_residual=True,
    tied_embeddings=False,
    eos_token_id=0,
    weights_dtype="float16",
)
"""Shape of GPT-NeoX-20B. Source: EleutherAI/gpt-neox-20b, config.json."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A type of GPU."""

    name: str
    """Name on the command line."""
    memory_bytes: float
    """Memory as reported by the driver."""
    memory_bytes_per_s: float
    """Memory bandwidth according to the data sheet."""
    flops_per_s: float
    """Dense fp16 arithmetic according to the data sheet, in FLOP/s."""
    price_per_hour: float
    """Default price, in the currency of the plan."""


GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-80", 80 * GIB, 2.039e12, 312e12, 2.0),
        Gpu("a100-40", 40 * GIB, 1.555e12, 312e12, 1.4),
        Gpu("h100-80", 80 * GIB, 3.35e12, 989e12, 3.5),
        Gpu("l40s", 48e9, 0.864e12, 362e12, 1.1),
        Gpu("a10", 24e9, 0.600e12, 125e12, 0.6),
        Gpu("l4", 24e9, 0.300e12, 121e12, 0.4),
    )
}
"""Known types of GPU by name."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load and its latency targets. All values must be positive."""

    rate: float
    """Requests per second."""
    input_tokens: float
    """Mean prompt length."""
    output_tokens: float
    """Mean output length."""
    ttft_s: float = 2.0
    """Maximum time to first token, in seconds."""
    tpot_s: float = 0.1
    """Maximum time per output token, in seconds."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name):g} is invalid; it must be positive")


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The input of a plan. Raises ValueError if a value is out of range or a GPU is unknown."""

    facts: ModelFacts
    """Shape of the model."""
    load: Load
    """The load and its latency targets."""
    gpus: Mapping[str, int]
    """Number of available GPUs by type."""
    max_model_len: int
    """Context length: the maximum number of tokens of a sequence."""
    quantizations: Sequence[Quantization] = (Quantization.NONE,)
    """Quantizations to consider."""
    gpu_memory_utilization: float = 0.9
    """Fraction of each GPU's memory that the engine may use."""
    prices_per_hour: Mapping[str, float] | None = None
    """Prices by type of GPU that replace the defaults."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_model_len <= self.facts.positions:
            raise ValueError(
                f"max_model_len {self.max_model_len} is invalid; it must be between 1 and {self.facts.positions}, the model's positions"
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization {self.gpu_memory_utilization} is invalid; it must be greater than 0 and at most 1")
        request_tokens = self.load.input_tokens + self.load.output_tokens
        if request_tokens > self.max_model_len:
            raise ValueError(
                f"input_tokens + output_tokens {request_tokens:g} is invalid; it must be at most max_model_len, {self.max_model_len}"
            )
        for name in self.gpus:
            if name not in GPUS:
                raise ValueError(f"GPU {name!r} is unknown; it must be one of {', '.join(GPUS)}")


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to place a replica on GPUs."""

    gpu: str
    """Type of the GPUs."""
    quantization: Quantization
    """Quantization of the weights."""
    tensor_parallel_size: int
    """Number of GPUs that share each layer."""
    pipeline_parallel_size: int
    """Number of stages into which the layers are divided."""

    @property
    def gpus(self) -> int:
        """Number of GPUs of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def __str__(self) -> str:
        split = f"TP={self.tensor_parallel_size}" + (f" PP={self.pipeline_parallel_size}" if self.pipeline_parallel_size > 1 else "")
        return f"{self.gpu} {split} {self.quantization}"


@dataclass(frozen=True, slots=True)
class PlannedLayout:
    """A layout that serves the load, and its expected operation."""

    layout: Layout
    """The placement of each replica."""
    weight_bytes: int
    """Memory of the weights of one replica."""
    kv_tokens: int
    """Tokens that the KV cache of one replica holds."""
    sequences: int
    """Sequences of maximum length that the KV cache of one replica holds."""
    replicas: int
    """Number of replicas that the load needs."""
    running: float
    """Expected number of running requests per replica."""
    ttft_s: float
    """Expected time to first token, in seconds."""
    tpot_s: float
    """Expected time per output token, in seconds."""
    tokens_per_s: float
    """Output tokens per second of all replicas."""
    cost: float
    """Price of all GPUs per hour."""
    step: StepTime
    """Step times of one replica."""

    @property
    def gpus(self) -> int:
        """Number of GPUs of all replicas."""
        return self.replicas * self.layout.gpus


@dataclass(frozen=True, slots=True)
class RejectedLayout:
    """A layout that does not serve the load."""

    layout: Layout
    """The placement of each replica."""
    reason: str
    """Why it was rejected."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The result of planning."""

    request: PlanRequest
    """The input."""
    planned: tuple[PlannedLayout, ...]
    """Layouts that serve the load, the best first."""
    rejected: tuple[RejectedLayout, ...]
    """Layouts that do not serve the load."""
    alternative: str = ""
    """If nothing is planned, a sentence about what would serve the load."""

    @property
    def best(self) -> PlannedLayout | None:
        """The cheapest layout; among equal costs, the one with the fewest GPUs, then the fastest. None if no layout serves the load."""
        return self.planned[0] if self.planned else None


def plan(request: PlanRequest) -> Plan:
    """Evaluates every layout and returns those that serve the load and those that do not."""
    planned, rejected = list[PlannedLayout](), list[RejectedLayout]()
    for layout in layouts(request):
        found = _evaluate(request, layout)
        if isinstance(found, PlannedLayout):
            planned.append(found)
        else:
            rejected.append(found)
    planned.sort(key=lambda one: (one.cost, one.gpus, one.tpot_s))
    return Plan(request, tuple(planned), tuple(rejected), "" if planned else _alternative(request))


def layouts(request: PlanRequest) -> Iterator[Layout]:
    """Yields all splits by powers of two for which there are enough GPUs."""
    for gpu, count in request.gpus.items():
        for quantization in request.quantizations:
            for tensor in (1, 2, 4, 8):
                for pipeline in (1, 2, 4):
                    if tensor * pipeline <= count:
                        yield Layout(gpu, quantization, tensor, pipeline)


def indivisible(facts: ModelFacts, layout: Layout) -> str:
    """Returns why the model cannot be split in this way, or an empty string if it can."""
    tensor, pipeline = layout.tensor_parallel_size, layout.pipeline_parallel_size
    if facts.heads % tensor:
        return f"{facts.heads} heads are not divisible by tensor_parallel_size {tensor}"
    if facts.intermediate_size % tensor:
        return f"{facts.intermediate_size} MLP columns are not divisible by tensor_parallel_size {tensor}"
    if _padded(facts.vocabulary_size) % tensor:
        return f"the padded vocabulary of {_padded(facts.vocabulary_size)} is not divisible by tensor_parallel_size {tensor}"
    if facts.layers % pipeline:
        return f"{facts.layers} layers are not divisible by pipeline_parallel_size {pipeline}"
    return ""


def kv_cache_tokens(request: PlanRequest, layout: Layout) -> int:
    """Returns how many tokens the KV cache of a replica holds. The result is not positive if the weights leave no memory."""
    return kv_tokens_that_fit(_usable_bytes(request, layout), request.facts, weight_bytes(request.facts, layout.quantization))


def step_time(facts: ModelFacts, layout: Layout) -> StepTime:
    """Returns the step times of one replica.

    Pipeline stages do not shorten the time of a token, because it passes them one after another.
    """
    fitted_gpu = "h100-80" if layout.gpu == "h100-80" else "a100-80"
    fitted, gpu, reference = FITTED[fitted_gpu, layout.tensor_parallel_size], GPUS[layout.gpu], GPUS[fitted_gpu]
    # The rest of the fixed time is for kernel launches and all-reduces, which are proportional to the number of layers.
    reference_read_s = weight_bytes(NEOX_20B) / layout.tensor_parallel_size / reference.memory_bytes_per_s
    overhead_s = max(0.0, fitted.fixed_s - reference_read_s) * facts.layers / NEOX_20B.layers
    arithmetic = parameters(facts) / parameters(NEOX_20B) * reference.flops_per_s / gpu.flops_per_s
    slowdown = reference.memory_bytes_per_s / gpu.memory_bytes_per_s
    kv = kv_bytes_per_token(facts) / kv_bytes_per_token(NEOX_20B) * slowdown
    read_s = weight_bytes(facts, layout.quantization) / layout.tensor_parallel_size / gpu.memory_bytes_per_s
    scaled = fitted.scaled(weights=1.0, arithmetic=arithmetic, kv=kv)
    return replace(scaled, fixed_s=overhead_s + read_s)


def _padded(vocabulary_size: int) -> int:
    """Returns the vocabulary size as vLLM stores it."""
    return math.ceil(vocabulary_size / _VOCABULARY_PADDING) * _VOCABULARY_PADDING


def _usable_bytes(request: PlanRequest, layout: Layout) -> float:
    return layout.gpus * (request.gpu_memory_utilization * GPUS[layout.gpu].memory_bytes - _OVERHEAD_BYTES)


def _evaluate(request: PlanRequest, layout: Layout) -> PlannedLayout | RejectedLayout:
    if reason := indivisible(request.facts, layout):
        return RejectedLayout(layout, reason)
    tokens, max_model_len = kv_cache_tokens(request, layout), request.max_model_len
    if tokens < max_model_len:
        missing = (max_model_len - tokens) * kv_bytes_per_token(request.facts) / layout.gpus / GIB
        return RejectedLayout(
            layout, f"does not fit: the weights and one sequence of {max_model_len} tokens need {missing:.1f} GiB more memory per GPU"
        )
    step = step_time(request.facts, layout)
    if step.fixed_s >= request.load.tpot_s:
        times = f"{1e3 * step.fixed_s:.0f} ms per token, more than the TPOT target of {1e3 * request.load.tpot_s:.0f} ms"
        return RejectedLayout(layout, f"reading the weights takes {times}")
    max_replicas = request.gpus[layout.gpu] // layout.gpus
    for replicas in range(1, max_replicas + 1):
        if (found := _planned(request, layout, step, tokens, replicas)) is not None:
            return found
    return RejectedLayout(
        layout, f"the available GPUs allow {max_replicas} replicas, which miss the latency targets at {request.load.rate:g} requests/s"
    )


def _planned(request: PlanRequest, layout: Layout, step: StepTime, kv_tokens: int, replicas: int) -> PlannedLayout | None:
    """Returns the expected operation with a number of replicas, or None if they cannot serve the load."""
    load, stages = request.load, layout.pipeline_parallel_size
    resident = load.input_tokens + load.output_tokens / 2
    per_token_s = step.per_sequence_s + step.per_resident_token_s * resident
    work_s = step.prefill_s(load.input_tokens) + load.output_tokens * per_token_s
    rate = load.rate / replicas
    # Pipeline stages work in parallel on different parts of the batch.
    busy = rate * work_s / stages
    if busy >= 1:
        return None
    tpot_s = step.fixed_s / (1 - busy)
    running = rate * load.output_tokens * tpot_s
    sequences = min(_MAX_SEQUENCES, int(kv_tokens / (load.input_tokens + load.output_tokens)))
    chunks = math.ceil(load.input_tokens / _STEP_TOKENS)
    ttft_s = step.prefill_s(load.input_tokens) + (chunks + 0.5) * tpot_s
    if tpot_s > load.tpot_s or ttft_s > load.ttft_s or running > sequences:
        return None
    price_per_hour = (request.prices_per_hour or {}).get(layout.gpu, GPUS[layout.gpu].price_per_hour)
    return PlannedLayout(
        layout=layout,
        weight_bytes=weight_bytes(request.facts, layout.quantization),
        kv_tokens=kv_tokens,
        sequences=kv_tokens // request.max_model_len,
        replicas=replicas,
        running=running,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        tokens_per_s=load.rate * load.output_tokens,
        cost=replicas * layout.gpus * price_per_hour,
        step=step,
    )


def _alternative(request: PlanRequest) -> str:
    """Returns a sentence about what would serve the load: other quantizations, then more GPUs, then other GPUs."""
    any_gpu = dict.fromkeys(GPUS, 1024)
    alternatives = (
        ("With another quantization", replace(request, quantizations=tuple(Quantization))),
        ("With more GPUs", replace(request, gpus=dict.fromkeys(request.gpus, 1024))),
        ("With other GPUs", replace(request, gpus=any_gpu)),
        ("With other GPUs and another quantization", replace(request, gpus=any_gpu, quantizations=tuple(Quantization))),
    )
    for change, changed in alternatives:
        found = [one for layout in layouts(changed) if isinstance(one := _evaluate(changed, layout), PlannedLayout)]
        if found:
            best = min(found, key=lambda one: (one.gpus, one.cost))
            return f"{change}, {best.replicas} replicas with layout {best.layout} ({best.gpus} GPUs) would serve it."
    return "No known GPU serves it. Relax the latency targets, shorten the requests, or reduce the context."


def serve_settings(found: PlannedLayout, request: PlanRequest, model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings for `neox-serve up`. `model` is their `model` section."""
    layout = found.layout
    quantized = {} if layout.quantization is Quantization.NONE else {"quantization": "compressed-tensors"}
    return {
        "model": dict(model),
        "generation": {
            "engine": {
                "dtype": "float16",
                "tensor_parallel_size": layout.tensor_parallel_size,
                "pipeline_parallel_size": layout.pipeline_parallel_size,
                "max_model_len": request.max_model_len,
                "max_num_seqs": max(1, min(_MAX_SEQUENCES, found.sequences)),
                "gpu_memory_utilization": request.gpu_memory_utilization,
                **quantized,
            },
            "replicas": {
                "min": 1,
                "initial": found.replicas,
                "max": request.gpus[layout.gpu] // layout.gpus,
                "gpus_per_worker": 1,
            },
        },
        "embedding": {"enabled": False},
        "scaling": {
            "target_ttft_s": request.load.ttft_s,
            "target_tpot_s": request.load.tpot_s,
            "step_base_s": found.step.fixed_s,
            "step_per_sequence_s": found.step.per_sequence_s,
            "step_per_resident_token_s": found.step.per_resident_token_s,
            "step_per_prompt_token_s": found.step.prefill_per_token_s,
            "kv_cache_tokens": found.kv_tokens,
        },
    }
