"""Step times of GPT-NeoX-20B, fitted to published measurements.

* A100-80GB: NVIDIA FasterTransformer's latencies of a GPT of the same shape (44 layers, hidden size 6144; docs/gpt_guide.md), by batch,
  input and output length at tensor-parallel sizes 1 to 8.
* H100: nobody has published the like. The A100's figures are scaled by how much faster the operators of one layer of InternLM-20B run there
  (Vidur's profiles, data/profiling): those of one token for reading weights, those of 2048 for arithmetic. The KV cache is read as
  much faster as the memory is (2.039 to 3.35 TB/s by NVIDIA's data sheets), since there is no table of attention.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neox_serve.model.step_time import StepTime

LATENCIES = "ft_gpt20b_a100_latency.csv"
TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)
GPUS = ("a100-80", "h100-80")
KV_TOKENS = {1: 15 * 2048, 2: 49 * 2048, 4: 116 * 2048, 8: 251 * 2048}
"""That fit in fp16 beside the weights at 0.90 of 80 GB a GPU with 1.5 GiB kept free on each."""
FITTED: Mapping[tuple[str, int], StepTime] = {
    ("a100-80", 1): StepTime(0.02689, 5.175e-05, 6.52e-07, 0.000179),
    ("a100-80", 2): StepTime(0.01813, 6.266e-05, 3.644e-07, 0.0001055),
    ("a100-80", 4): StepTime(0.01273, 5.42e-05, 1.348e-07, 6.174e-05),
    ("a100-80", 8): StepTime(0.01072, 5.453e-05, 4.982e-08, 4.266e-05),
    ("h100-80", 1): StepTime(0.01581, 1.788e-05, 3.968e-07, 6.185e-05),
    ("h100-80", 2): StepTime(0.01049, 2.287e-05, 2.218e-07, 3.851e-05),
    ("h100-80", 4): StepTime(0.008195, 2.067e-05, 8.206e-08, 2.354e-05),
    ("h100-80", 8): StepTime(0.006757, 2.298e-05, 3.033e-08, 1.797e-05),
}
"""What `step_time` finds in the tables, by GPU and tensor-parallel size, for where these are not at hand."""
_MEMORY_RATIO = 2.039 / 3.35
_MS = 1e-3


@dataclass(frozen=True, slots=True)
class Latency:
    """A measured batch: all its prompts computed, then all its outputs generated. total_s: from start to end."""

    batch: int
    input_tokens: int
    output_tokens: int
    total_s: float

    @property
    def shape(self) -> tuple[int, int]:
        """Input and output length."""
        return self.input_tokens, self.output_tokens


@dataclass(frozen=True, slots=True)
class Fit:
    """Step times, and how far they are off: mean and largest relative errors, of rows that were fitted and of rows that were held out."""

    step_time: StepTime
    rows: int
    error_fraction: float
    largest_error_fraction: float
    held_out_error_fraction: float
    held_out_largest_error_fraction: float


def read_latencies(path: Path, tensor_parallel_size: int) -> list[Latency]:
    """Rows of FasterTransformer's table; those that ran out of memory are left out. Raises ValueError naming file and column."""
    column = f"tp{tensor_parallel_size}_ms"
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if column not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: no column {column!r}; it has {', '.join(reader.fieldnames or ())}")
        return [
            Latency(int(row["batch"]), int(row["input_len"]), int(row["output_len"]), float(row[column]) * _MS)
            for row in reader
            if row[column]
        ]


def predicted_s(step_time: StepTime, batch: int, input_tokens: int, output_tokens: int) -> float:
    """How long a batch takes: its prompts in the first step, and a step for each further token, with ever more in the KV cache."""
    resident = batch * (input_tokens + output_tokens / 2)
    return step_time.prefill_s(batch * input_tokens) + output_tokens * step_time.decode_s(batch, resident)


def fit(latencies: Sequence[Latency]) -> Fit:
    """Least squares of relative errors. Held out: each (input, output) shape in turn, all its batches at once. Raises ValueError."""
    shapes = sorted({row.shape for row in latencies})
    if len(shapes) < 3:
        raise ValueError(f"{len(shapes)} (input, output) shapes: at least three are needed, or step times cannot be told apart")
    whole = _solve(latencies)
    errors = _errors(whole, latencies)
    held_out: list[float] = []
    for shape in shapes:
        kept = _solve([row for row in latencies if row.shape != shape])
        held_out += _errors(kept, [row for row in latencies if row.shape == shape])
    return Fit(whole, len(latencies), float(np.mean(errors)), max(errors), float(np.mean(held_out)), max(held_out))


def step_time(folder: Path | None, gpu: str, tensor_parallel_size: int) -> StepTime:
    """Of GPT-NeoX-20B in fp16. folder: with the tables; absent: as they were fitted. gpu: one of GPUS. Raises ValueError naming what is not
    known."""
    if gpu not in GPUS:
        raise ValueError(f"GPU {gpu!r}: must be one of {', '.join(GPUS)}")
    if tensor_parallel_size not in TENSOR_PARALLEL_SIZES:
        raise ValueError(f"tensor-parallel size {tensor_parallel_size}: must be one of {', '.join(map(str, TENSOR_PARALLEL_SIZES))}")
    if folder is None:
        return FITTED[gpu, tensor_parallel_size]
    a100 = fit(read_latencies(folder / LATENCIES, tensor_parallel_size)).step_time
    if gpu == "a100-80":
        return a100
    weights, arithmetic = (_layer_ratio(folder, tokens, tensor_parallel_size) for tokens in (1, 2048))
    return a100.scaled(weights=weights, arithmetic=arithmetic, kv=_MEMORY_RATIO)


def _solve(latencies: Sequence[Latency]) -> StepTime:
    rows = np.array(
        [
            (
                row.output_tokens,
                row.batch * row.output_tokens,
                row.batch * row.output_tokens * (row.input_tokens + row.output_tokens / 2),
                row.batch * row.input_tokens,
            )
            for row in latencies
        ],
        dtype=float,
    )
    totals = np.array([row.total_s for row in latencies])
    parts, *_ = np.linalg.lstsq(rows / totals[:, None], np.ones(len(totals)), rcond=None)
    return StepTime(*(max(0.0, float(part)) for part in parts))


def _errors(found: StepTime, latencies: Sequence[Latency]) -> list[float]:
    return [abs(predicted_s(found, row.batch, row.input_tokens, row.output_tokens) / row.total_s - 1) for row in latencies]


def _layer_ratio(folder: Path, tokens: int, tensor_parallel_size: int) -> float:
    """The H100's time for one layer's operators over the A100's."""
    h100, a100 = (_layer_ms(folder / f"vidur_{gpu}_internlm-20b_mlp.csv", tokens, tensor_parallel_size) for gpu in ("h100", "a100"))
    return h100 / a100


def _layer_ms(path: Path, tokens: int, tensor_parallel_size: int) -> float:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if int(row["num_tokens"]) == tokens and int(row["num_tensor_parallel_workers"]) == tensor_parallel_size:
                return sum(float(row[name]) for name in row if name.endswith(".median") and ".emb." not in name)
    raise ValueError(f"{path}: no row for {tokens} tokens at tensor-parallel size {tensor_parallel_size}")
