"""The runs that goals' figures come from."""

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
    """What goals are measured from. Each run is made once, when the first goal asks; its failure is that of all its goals."""

    def __init__(self, folder: Path, view: View) -> None:
        self._folder = folder
        self._view = view
        self._made: dict[str, object] = {}

    def engines(self) -> Comparison:
        """Real engines side by side."""
        return self._once("engines", lambda folder: engine_comparison.run(engine_comparison.GOALS, folder, self._view))

    def fake(self) -> Comparison:
        """neox-serve and a Serve handle with the fake engine."""
        return self._once("fake", lambda folder: fake_comparison.run(fake_comparison.GOALS, folder, self._view))

    def ladder(self) -> Ladder:
        """A bare gRPC server and the whole of neox-serve with the fake engine."""
        return self._once("ladder", lambda folder: ladder.run(climbing.GOALS, folder, self._view))

    def router(self) -> Decisions:
        """The router's core with 1,000 replicas and a million blocks."""
        return self._once("router", lambda _: router_decisions.measure(1000, router_scale.DECISIONS))

    def cancellation(self) -> Freed:
        """Requests given up."""
        return self._once("cancellation", lambda folder: cancellation.run(folder, self._view))

    def rolling(self) -> Rolled:
        """An engine setting rolled under load."""
        return self._once("rolling", lambda folder: rolling.run(folder, self._view))

    def bits_per_byte_over_xz(self) -> float:
        """The built-in model on held-out text."""
        return self._once("builtin-model", lambda _: builtin_model.bits_per_byte_over_xz(self._view))

    def overload(self) -> Overloaded:
        """Four times the capacity, in this process."""
        return self._once("overload", lambda _: asyncio.run(overload.measure()))

    def bulk(self) -> Bulk:
        """Bulk jobs beside an offline engine, and beside callers who wait."""
        return self._once("bulk", lambda folder: bulk.run(folder, self._view))

    def life_cycle(self) -> LifeCycle:
        """Fine-tuning, evaluation and quantising of the built-in model."""
        return self._once("life-cycle", lambda folder: life_cycle.run(folder, self._view))

    def layers(self) -> Layers:
        """Embeddings of half of the layers, and of all."""
        return self._once("layers", lambda folder: layers.run(folder, self._view))

    def validation(self) -> list[Validated]:
        """The simulator against a real cluster."""
        return self._once("validation", lambda folder: scaling_validation.run(folder, self._view))

    def _once(self, name: str, make: Callable[[Path], T]) -> T:
        if name not in self._made:
            folder = self._folder / name
            folder.mkdir(parents=True)
            try:
                self._made[name] = make(folder)
            except Exception as error:  # noqa: BLE001 - whatever keeps a run from its end is the reason why its goals are short
                self._view.console.print_exception()
                self._made[name] = error
        made = self._made[name]
        if isinstance(made, Exception):
            raise made
        return cast("T", made)
