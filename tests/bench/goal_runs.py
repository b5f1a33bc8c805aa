"""The benchmark runs from which the goals take their values."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from tests.bench.engines import builtin_model, engine_comparison, fake_comparison
from tests.bench.engines.comparison import Comparison
from tests.bench.faults import cancellation, overload, rolling
from tests.bench.faults.cancellation import Freed
from tests.bench.faults.overload import Overloaded
from tests.bench.faults.rolling import Rolled
from tests.bench.jobs import bulk, layers, life_cycle
from tests.bench.jobs.bulk import Bulk
from tests.bench.jobs.layers import Layers
from tests.bench.jobs.life_cycle import LifeCycle
from tests.bench.ladder import climbing
from tests.bench.ladder import running as ladder
from tests.bench.ladder.figures import Ladder
from tests.bench.router import decisions as router_decisions
from tests.bench.router import scale as router_scale
from tests.bench.router.decisions import Decisions
from tests.bench.scaling import validation as scaling_validation
from tests.bench.scaling.validation import Validated
from tests.bench.view import View

T = TypeVar("T")


class Runs:
    """Benchmark runs. Each run is made once, when the first goal needs it. If it fails, all its goals fail with the same error."""

    def __init__(self, folder: Path, view: View) -> None:
        self._folder = folder
        self._view = view
        self._made: dict[str, object] = {}

    def engines(self) -> Comparison:
        """Compares neox-serve with other systems on real engines."""
        return self._once("engines", lambda folder: engine_comparison.run(engine_comparison.GOALS, folder, self._view))

    def fake(self) -> Comparison:
        """Compares neox-serve with a Serve handle on the fake engine."""
        return self._once("fake", lambda folder: fake_comparison.run(fake_comparison.GOALS, folder, self._view))

    def ladder(self) -> Ladder:
        """Compares a bare gRPC server with the complete neox-serve on the fake engine."""
        return self._once("ladder", lambda folder: ladder.run(climbing.GOALS, folder, self._view))

    def router(self) -> Decisions:
        """Measures the router's core with 1,000 replicas and a million blocks."""
        return self._once("router", lambda _: router_decisions.measure(1000, router_scale.DECISIONS))

    def cancellation(self) -> Freed:
        """Measures how fast abandoned requests release the engine."""
        return self._once("cancellation", lambda folder: cancellation.run(folder, self._view))

    def rolling(self) -> Rolled:
        """Measures a rolling update of an engine setting under load."""
        return self._once("rolling", lambda folder: rolling.run(folder, self._view))

    def bits_per_byte_over_xz(self) -> float:
        """Evaluates the built-in model on held-out text."""
        return self._once("builtin-model", lambda _: builtin_model.bits_per_byte_over_xz(self._view))

    def overload(self) -> Overloaded:
        """Measures a load of four times the capacity, within this process."""
        return self._once("overload", lambda _: asyncio.run(overload.measure()))

    def bulk(self) -> Bulk:
        """Compares bulk jobs with an offline engine, and measures their effect on interactive requests."""
        return self._once("bulk", lambda folder: bulk.run(folder, self._view))

    def life_cycle(self) -> LifeCycle:
        """Fine-tune, evaluate and quantize the built-in model."""
        return self._once("life-cycle", lambda folder: life_cycle.run(folder, self._view))

    def layers(self) -> Layers:
        """Compares embeddings from half of the layers with embeddings from all layers."""
        return self._once("layers", lambda folder: layers.run(folder, self._view))

    def validation(self) -> list[Validated]:
        """Compares the simulator with a real cluster."""
        return self._once("validation", lambda folder: scaling_validation.run(folder, self._view))

    def _once(self, name: str, make: Callable[[Path], T]) -> T:
        if name not in self._made:
            folder = self._folder / name
            folder.mkdir(parents=True)
            try:
                self._made[name] = make(folder)
            except Exception as error:  # noqa: BLE001 - any error of a run becomes the reason why its goals are unmeasured
                self._view.console.print_exception()
                self._made[name] = error
        made = self._made[name]
        if isinstance(made, Exception):
            raise made
        return cast("T", made)
