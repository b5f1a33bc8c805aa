"""Plans a pool of replicas: which GPUs, how the model is split over them, how many replicas a load takes, and what that costs.

Memory follows from the model's shape (model.memory). Step times are GPT-NeoX-20B's as fitted to measurements on A100-80GB and scaled to
H100-80GB (autoscaling.simulator.calibration); other GPUs are scaled by their data sheets, other models by their weights, KV and arithmetic.
A replica's steps then take F / (1 - rho): F for reading the weights, rho the share of its time that requests add to (Little's law).
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
_OVERHEAD_BYTES = 1.5 * GIB
"""Of each GPU, for activations, CUDA graphs and the runtime."""
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
"""As published: EleutherAI/gpt-neox-20b, config.json."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A type of GPU. memory_bytes: that the driver shows. bandwidth: of memory, bytes/s; arithmetic: fp16, FLOP/s; both by data sheet.

    price: an hour, in whatever currency is planned in.
    """

    name: str
    memory_bytes: float
    bandwidth: float
    arithmetic: float
    price: float


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


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: requests a second of these lengths, first tokens within ttft_s, further ones within tpot_s each."""

    rate: float
    input_tokens: float
    output_tokens: float
    ttft_s: float = 2.0
    tpot_s: float = 0.1

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name):g}: must be positive")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is planned for. gpus: of each type by name, how many there are. context: tokens that a sequence may have."""

    facts: ModelFacts
    load: Load
    gpus: Mapping[str, int]
    context: int
    quantizations: Sequence[Quantization] = (Quantization.NONE,)
    utilization: float = 0.9
    prices: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.context <= self.facts.positions:
            raise ValueError(f"context {self.context}: must be in [1, {self.facts.positions}], the model's positions")
        if not 0 < self.utilization <= 1:
            raise ValueError(f"utilization {self.utilization}: must be in (0, 1]")
        if self.load.input_tokens + self.load.output_tokens > self.context:
            asked = self.load.input_tokens + self.load.output_tokens
            raise ValueError(f"input_tokens + output_tokens {asked:g}: must be at most context, {self.context}")
        for name in self.gpus:
            if name not in GPUS:
                raise ValueError(f"GPU {name!r}: must be one of {', '.join(GPUS)}")


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to place a replica."""

    gpu: str
    quantization: Quantization
    tensor_parallel_size: int
    pipeline_parallel_size: int

    @property
    def gpus(self) -> int:
        """Of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def __str__(self) -> str:
        split = f"TP={self.tensor_parallel_size}" + (f" PP={self.pipeline_parallel_size}" if self.pipeline_parallel_size > 1 else "")
        return f"{self.gpu} {split} {self.quantization}"


@dataclass(frozen=True, slots=True)
class Planned:
    """A layout that serves the load. kv_tokens, sequences: that a replica's cache holds. The rest is expected at the load."""

    layout: Layout
    weight_bytes: int
    kv_tokens: int
    sequences: int
    replicas: int
    running: float
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    cost: float
    step: StepTime

    @property
    def gpus(self) -> int:
        """Of all replicas."""
        return self.replicas * self.layout.gpus


@dataclass(frozen=True, slots=True)
class Refused:
    """A layout that does not do, and why."""

    layout: Layout
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What came of a wish. planned: the best first. nearest: where nothing is planned, what would come nearest to it."""

    wish: Wish
    planned: tuple[Planned, ...]
    refused: tuple[Refused, ...]
    nearest: str = ""

    @property
    def best(self) -> Planned | None:
        """The cheapest; of equals, the one with the fewest GPUs, then the quickest."""
        return self.planned[0] if self.planned else None


def plan(wish: Wish) -> Plan:
    """Tries every layout."""
    planned, refused = list[Planned](), list[Refused]()
    for layout in layouts(wish):
        found = _judge(wish, layout)
        if isinstance(found, Planned):
            planned.append(found)
        else:
            refused.append(found)
    planned.sort(key=lambda one: (one.cost, one.gpus, one.tpot_s))
    return Plan(wish, tuple(planned), tuple(refused), "" if planned else _nearest(wish))


def layouts(wish: Wish) -> Iterator[Layout]:
    """All splits by powers of two that the GPUs of a type are enough for."""
    for gpu, count in wish.gpus.items():
        for quantization in wish.quantizations:
            for tensor in (1, 2, 4, 8):
                for pipeline in (1, 2, 4):
                    if tensor * pipeline <= count:
                        yield Layout(gpu, quantization, tensor, pipeline)


def indivisible(facts: ModelFacts, layout: Layout) -> str:
    """Why the model cannot be split so; empty where it can."""
    tensor, pipeline = layout.tensor_parallel_size, layout.pipeline_parallel_size
    if facts.heads % tensor:
        return f"{facts.heads} heads cannot be split over {tensor}"
    if facts.intermediate_size % tensor:
        return f"{facts.intermediate_size} MLP columns cannot be split over {tensor}"
    if _padded(facts.vocabulary_size) % tensor:
        return f"a vocabulary of {_padded(facts.vocabulary_size)} cannot be split over {tensor}"
    if facts.layers % pipeline:
        return f"{facts.layers} layers cannot be split evenly over {pipeline} stages"
    return ""


def kv_room_tokens(wish: Wish, layout: Layout) -> int:
    """Tokens that a replica's KV cache holds; not positive where the weights leave no room."""
    return kv_tokens_that_fit(_room_bytes(wish, layout), wish.facts, weight_bytes(wish.facts, layout.quantization))


def step_time(facts: ModelFacts, layout: Layout) -> StepTime:
    """Of one replica. A pipeline's stages follow one another, so that a token takes no less time for them."""
    fitted_gpu = "h100-80" if layout.gpu == "h100-80" else "a100-80"
    fitted, gpu, reference = FITTED[fitted_gpu, layout.tensor_parallel_size], GPUS[layout.gpu], GPUS[fitted_gpu]
    # Beyond reading the weights, a step has launches and all-reduces, of each layer.
    reading_s = weight_bytes(NEOX_20B) / layout.tensor_parallel_size / reference.bandwidth
    others_s = max(0.0, fitted.fixed_s - reading_s) * facts.layers / NEOX_20B.layers
    arithmetic = parameters(facts) / parameters(NEOX_20B) * reference.arithmetic / gpu.arithmetic
    slower = reference.bandwidth / gpu.bandwidth
    kv = kv_bytes_per_token(facts) / kv_bytes_per_token(NEOX_20B) * slower
    read_s = weight_bytes(facts, layout.quantization) / layout.tensor_parallel_size / gpu.bandwidth
    scaled = fitted.scaled(weights=1.0, arithmetic=arithmetic, kv=kv)
    return replace(scaled, fixed_s=others_s + read_s)


def _padded(vocabulary_size: int) -> int:
    """As vLLM stores it."""
    return math.ceil(vocabulary_size / _VOCABULARY_PADDING) * _VOCABULARY_PADDING


def _room_bytes(wish: Wish, layout: Layout) -> float:
    return layout.gpus * (wish.utilization * GPUS[layout.gpu].memory_bytes - _OVERHEAD_BYTES)


def _judge(wish: Wish, layout: Layout) -> Planned | Refused:
    if reason := indivisible(wish.facts, layout):
        return Refused(layout, reason)
    tokens = kv_room_tokens(wish, layout)
    if tokens < wish.context:
        missing = (wish.context - tokens) * kv_bytes_per_token(wish.facts) / layout.gpus / GIB
        return Refused(layout, f"does not fit: {missing:.1f} GiB a GPU short of the weights and one sequence of {wish.context} tokens")
    step = step_time(wish.facts, layout)
    if step.fixed_s >= wish.load.tpot_s:
        return Refused(layout, f"reading the weights alone takes {1e3 * step.fixed_s:.0f} ms a token, over {1e3 * wish.load.tpot_s:.0f}")
    most = wish.gpus[layout.gpu] // layout.gpus
    for replicas in range(1, most + 1):
        if (found := _at(wish, layout, step, tokens, replicas)) is not None:
            return found
    return Refused(layout, f"the {most} replicas that there are GPUs for do not keep the promise at {wish.load.rate:g} requests/s")


def _at(wish: Wish, layout: Layout, step: StepTime, kv_tokens: int, replicas: int) -> Planned | None:
    """The load on so many replicas; None where it is too much for them."""
    load, stages = wish.load, layout.pipeline_parallel_size
    resident = load.input_tokens + load.output_tokens / 2
    per_token_s = step.per_sequence_s + step.per_resident_token_s * resident
    work_s = step.prefill_s(load.input_tokens) + load.output_tokens * per_token_s
    rate = load.rate / replicas
    # Stages work at the same time, on different parts of the batch.
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
    price = (wish.prices or {}).get(layout.gpu, GPUS[layout.gpu].price)
    return Planned(
        layout=layout,
        weight_bytes=weight_bytes(wish.facts, layout.quantization),
        kv_tokens=kv_tokens,
        sequences=kv_tokens // wish.context,
        replicas=replicas,
        running=running,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        tokens_per_s=load.rate * load.output_tokens,
        cost=replicas * layout.gpus * price,
        step=step,
    )


def _nearest(wish: Wish) -> str:
    """What would serve the load: other quantisations on the GPUs that there are, then more of them, then other types."""
    enough = dict.fromkeys(GPUS, 1024)
    tries = (
        ("with", Wish(wish.facts, wish.load, wish.gpus, wish.context, tuple(Quantization), wish.utilization, wish.prices)),
        ("with more GPUs:", _with_gpus(wish, dict.fromkeys(wish.gpus, 1024), wish.quantizations)),
        ("with other GPUs:", _with_gpus(wish, enough, wish.quantizations)),
        ("with other GPUs:", _with_gpus(wish, enough, tuple(Quantization))),
    )
    for words, other in tries:
        found = [one for layout in layouts(other) if isinstance(one := _judge(other, layout), Planned)]
        if found:
            best = min(found, key=lambda one: (one.gpus, one.cost))
            return f"{words} {best.layout} it would be served by {best.replicas} replicas, {best.gpus} GPUs"
    return "no GPU that is known here serves it: a slower promise, shorter requests or a smaller context are needed"


def _with_gpus(wish: Wish, gpus: Mapping[str, int], quantizations: Sequence[Quantization]) -> Wish:
    return Wish(wish.facts, wish.load, gpus, wish.context, quantizations, wish.utilization, wish.prices)


def serve_settings(found: Planned, wish: Wish, model: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that `neox-serve up` takes. model: its `model` section."""
    layout = found.layout
    quantized = {} if layout.quantization is Quantization.NONE else {"quantization": "compressed-tensors"}
    return {
        "model": dict(model),
        "generation": {
            "engine": {
                "dtype": "float16",
                "tensor_parallel_size": layout.tensor_parallel_size,
                "pipeline_parallel_size": layout.pipeline_parallel_size,
                "max_model_len": wish.context,
                "max_num_seqs": max(1, min(_MAX_SEQUENCES, found.sequences)),
                "gpu_memory_utilization": wish.utilization,
                **quantized,
            },
            "replicas": {
                "min": 1,
                "initial": found.replicas,
                "max": wish.gpus[layout.gpu] // layout.gpus,
                "gpus_per_worker": 1,
            },
        },
        "embedding": {"enabled": False},
        "scaling": {
            "target_ttft_s": wish.load.ttft_s,
            "target_tpot_s": wish.load.tpot_s,
            "step_base_s": found.step.fixed_s,
            "step_per_sequence_s": found.step.per_sequence_s,
            "step_per_resident_token_s": found.step.per_resident_token_s,
            "step_per_prompt_token_s": found.step.prefill_per_token_s,
            "kv_cache_tokens": found.kv_tokens,
        },
    }
