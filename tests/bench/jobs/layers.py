"""Embeddings of a chosen layer: the cost of half of the layers relative to all, and the difference from transformers' hidden states.

`python -m tests.bench.jobs.layers LAYER` measures one layer in its own process and prints the result; 0 means all layers.
"""

import asyncio
import gc
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from neox_serve.core.types import EmbeddingRequest, Pool, Pooling
from neox_serve.engine.factory import engine_environment, start_engine
from neox_serve.engine.protocol import Engine
from neox_serve.model import model_files
from neox_serve.settings import Settings, restore
from neox_serve.settings.slices import PoolEngineSettings
from tests.bench.faults.cancellation import NotMeasuredError
from tests.bench.processes import system_process
from tests.bench.view import View

HALF, ALL = 3, 0
"""Layer after half of the layers, and the value for all layers."""
_INPUTS, _TOKENS, _ROUNDS = 256, 256, 3
_TIMEOUT_S = 180.0
_SEEDS = 97
"""Seed of the inputs. No two inputs have a common beginning, so the prefix cache has no effect."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The result for one layer."""

    seconds: float
    """Time for all inputs."""
    parameter_bytes: int
    """Size of the loaded parameters."""
    vector: list[float]
    """Embedding of the first input."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The comparison of half of the layers with all layers."""

    time: float
    """Time relative to that of all layers."""
    memory: float
    """Size of the parameters relative to that of all layers."""
    error: float
    """Maximum difference from transformers relative to the maximum value, with half of the layers."""


def run(folder: Path, view: View) -> Layers:
    """Measures both. Raises NotMeasuredError if an engine fails."""
    with view.step("layers: half of the layers, and all"):
        half, full = _measured(HALF, folder), _measured(ALL, folder)
    return Layers(half.seconds / full.seconds, half.parameter_bytes / full.parameter_bytes, _error(half.vector, HALF))


def _measured(layer: int, folder: Path) -> Measured:
    log = folder / f"layer-{layer}.log"
    environment = engine_environment(PoolEngineSettings.from_settings(_settings(layer), Pool.EMBEDDING))
    with system_process(["-m", "tests.bench.jobs.layers", str(layer)], environment, log) as process:
        if process.wait(_TIMEOUT_S) != 0:
            raise NotMeasuredError(f"the engine failed; see {log}")
    lines = log.read_text(encoding="utf-8").splitlines()
    return Measured(**json.loads(next(line for line in reversed(lines) if line.startswith("{"))))


def _settings(layer: int) -> Settings:
    engine = {"executor_backend": "uni", "dtype": "float32", "max_num_seqs": 32}
    return restore({"embedding": {"engine": engine, "layer": layer or None}})


async def _measure(layer: int) -> Measured:
    engine = await start_engine(PoolEngineSettings.from_settings(_settings(layer), Pool.EMBEDDING), offline=True)
    try:
        seconds = min([await _timed(engine, number) for number in range(_ROUNDS)])
        result = await engine.embed("one", _request(0, 0))
        return Measured(seconds, _parameter_bytes(), np.frombuffer(result.values, dtype="<f4").tolist())
    finally:
        await engine.close()


async def _timed(engine: Engine, number: int) -> float:
    began_s = time.perf_counter()
    await asyncio.gather(*(engine.embed((number, place), _request(number, place)) for place in range(_INPUTS)))
    return time.perf_counter() - began_s


def _ids(number: int, place: int) -> tuple[int, ...]:
    rng = np.random.default_rng((_SEEDS, number, place))
    return tuple(int(token_id) for token_id in rng.integers(5, 4000, _TOKENS))


def _request(number: int, place: int) -> EmbeddingRequest:
    return EmbeddingRequest(f"{number}-{place}", _ids(number, place), Pooling.MEAN, normalize=False)


def _parameter_bytes() -> int:
    """Returns the parameter size of the loaded model. Matrices that oneDNN has packed are no longer parameters and are counted by shape."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.models.transformers.base import Base

    gc.unfreeze()  # vLLM freezes the existing objects after its start
    (model,) = (each for each in gc.get_objects() if issubclass(type(each), Base))
    kept: int = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    linear = [module for module in model.modules() if isinstance(module, LinearBase) and not module.weight.numel()]
    return kept + sum(int(module.input_size * module.output_size * module.weight.element_size()) for module in linear)


def _error(vector: list[float], layer: int) -> float:
    from tests.e2e.reference import Reference

    reference = Reference.load(model_files.locate("builtin", None))
    wanted = reference.hidden_of(_ids(0, 0), layer).numpy().mean(axis=0)
    return float(np.abs(np.array(vector) - wanted).max() / np.abs(wanted).max())


if __name__ == "__main__":
    os.environ.update(engine_environment(PoolEngineSettings.from_settings(_settings(int(sys.argv[1])), Pool.EMBEDDING)))
    print(json.dumps(asdict(asyncio.run(_measure(int(sys.argv[1]))))), flush=True)
