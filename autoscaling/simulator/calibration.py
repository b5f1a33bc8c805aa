"""Step times of GPT-NeoX-20B, fitted to published measurements.

* A100-80GB: NVIDIA FasterTransformer's latencies of a GPT of the same shape (44 layers, hidden size 6144; docs/gpt_guide.md), by batch
  size, input length and output length, at tensor-parallel sizes 1 to 8.
* H100: no comparable measurements have been published. The A100's step times are scaled by the speed-up of the operators of one layer of
  InternLM-20B (Vidur's profiles, data/profiling): the speed-up for 1 token applies to reading weights, the one for 2048 tokens to
  arithmetic. Reading the KV cache is scaled by the memory bandwidth (2.039 and 3.35 TB/s in NVIDIA's data sheets), because there is no
  attention profile.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neox_serve.model.step_time import StepTime

LATENCIES = "ft_gpt20b_a100_latency.csv"
"""File name of FasterTransformer's latency table in the calibration folder."""
TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)
"""Tensor-parallel sizes in the tables."""
GPUS = ("a100-80", "h100-80")
"""GPUs with step times."""
KV_TOKENS = {1: 15 * 2048, 2: 49 * 2048, 4: 116 * 2048, 8: 251 * 2048}
"""KV cache size in tokens by tensor-parallel size: in fp16 next to the weights, at 0.90 of 80 GB per GPU with 1.5 GiB kept free on each."""
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
"""Results of `step_time` with the calibration tables, by GPU and tensor-parallel size. They are used if no tables are given."""
_MEMORY_RATIO = 2.039 / 3.35
_MS = 1e-3


@dataclass(frozen=True, slots=True)
class Latency:
    """One measurement: a batch of prompts is computed, then all outputs are generated."""

    batch: int
    """Number of sequences."""
    input_tokens: int
    """Prompt length of each sequence."""
    output_tokens: int
    """Output length of each sequence."""
    total_s: float
    """Time from start to end, in seconds."""

    @property
    def shape(self) -> tuple[int, int]:
        """The input and output length."""
        return self.input_tokens, self.output_tokens


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted step times and their relative errors."""

    step_time: StepTime
    """The step times fitted to all rows."""
    rows: int
    """Number of rows."""
    error_fraction: float
    """Mean relative error over all rows."""
    max_error_fraction: float
    """Maximum relative error over all rows."""
    held_out_error_fraction: float
    """Mean relative error over rows that were left out of the fit."""
    held_out_max_error_fraction: float
    """Maximum relative error over rows that were left out of the fit."""


def read_latencies(path: Path, tensor_parallel_size: int) -> list[Latency]:
    """Reads FasterTransformer's table, without the rows that ran out of memory.

    Raises OSError if the file cannot be read, and ValueError if it has no column for the tensor-parallel size.
    """
    column = f"tp{tensor_parallel_size}_ms"
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if column not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: column {column!r} is missing; the file has {', '.join(reader.fieldnames or ())}")
        return [
            Latency(int(row["batch"]), int(row["input_len"]), int(row["output_len"]), float(row[column]) * _MS)
            for row in reader
            if row[column]
        ]


def predicted_s(step_time: StepTime, batch: int, input_tokens: int, output_tokens: int) -> float:
    """Returns how long a batch takes, in seconds: one step for all prompts, then one step per token with a growing KV cache."""
    resident = batch * (input_tokens + output_tokens / 2)
    return step_time.prefill_s(batch * input_tokens) + output_tokens * step_time.decode_s(batch, resident)


def fit(latencies: Sequence[Latency]) -> Fit:
    """Fits step times by least squares of the relative errors.

    For the held-out errors, each (input, output) shape is left out in turn, with all its batch sizes.
    Raises ValueError if there are fewer than three shapes.
    """
    shapes = sorted({row.shape for row in latencies})
    if len(shapes) < 3:
        raise ValueError(
            f"the table has {len(shapes)} (input, output) shapes; at least 3 are needed to separate the terms of the step time"
        )
    fitted = _solve(latencies)
    errors = _errors(fitted, latencies)
    held_out: list[float] = []
    for shape in shapes:
        kept = _solve([row for row in latencies if row.shape != shape])
        held_out += _errors(kept, [row for row in latencies if row.shape == shape])
    return Fit(fitted, len(latencies), float(np.mean(errors)), max(errors), float(np.mean(held_out)), max(held_out))


def step_time(folder: Path | None, gpu: str, tensor_parallel_size: int) -> StepTime:
    """Returns the step times of GPT-NeoX-20B in fp16.

    `folder` holds the calibration tables to fit; None uses the stored fit. `gpu` is one of GPUS.
    Raises ValueError if the GPU or the tensor-parallel size is unknown, and OSError if a table cannot be read.
    """
    if gpu not in GPUS:
        raise ValueError(f"GPU {gpu!r} is unknown; it must be one of {', '.join(GPUS)}")
    if tensor_parallel_size not in TENSOR_PARALLEL_SIZES:
        raise ValueError(
            f"tensor-parallel size {tensor_parallel_size} is unknown; it must be one of {', '.join(map(str, TENSOR_PARALLEL_SIZES))}"
        )
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
    """Returns the H100's time for the operators of one layer divided by the A100's."""
    h100, a100 = (_layer_ms(folder / f"vidur_{gpu}_internlm-20b_mlp.csv", tokens, tensor_parallel_size) for gpu in ("h100", "a100"))
    return h100 / a100


def _layer_ms(path: Path, tokens: int, tensor_parallel_size: int) -> float:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if int(row["num_tokens"]) == tokens and int(row["num_tensor_parallel_workers"]) == tensor_parallel_size:
                return sum(float(row[name]) for name in row if name.endswith(".median") and ".emb." not in name)
    raise ValueError(f"{path}: no row for {tokens} tokens at tensor-parallel size {tensor_parallel_size}")
