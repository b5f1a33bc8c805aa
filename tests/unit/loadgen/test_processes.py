"""What processes are said to use, with fakes in their place."""

from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from neox_serve.loadgen.processes import resident_mib

MIB = 2**20


class FakeProcess:
    """A process of so many bytes. error: what asking for its proportional part raises."""

    def __init__(self, pss: int, rss: int, error: Exception | None = None) -> None:
        self._pss, self._rss, self._error = pss, rss, error

    def memory_full_info(self) -> SimpleNamespace:
        """As psutil has it."""
        if self._error is not None:
            raise self._error
        return SimpleNamespace(pss=self._pss, rss=self._rss)

    def memory_info(self) -> SimpleNamespace:
        """As psutil has it."""
        return SimpleNamespace(rss=self._rss)


def held_mib(*processes: FakeProcess) -> float:
    """Of fakes."""
    return resident_mib([cast("psutil.Process", process) for process in processes])


def test_memory_is_the_sum_of_proportional_parts() -> None:
    assert held_mib(FakeProcess(3 * MIB, 9 * MIB), FakeProcess(MIB // 2, 9 * MIB)) == pytest.approx(3.5)


def test_memory_of_a_process_that_cannot_be_looked_into_is_all_its_pages() -> None:
    assert held_mib(FakeProcess(0, 9 * MIB, psutil.AccessDenied(7)), FakeProcess(MIB, 2 * MIB)) == pytest.approx(10.0)


def test_memory_of_a_process_that_has_ended_is_nothing() -> None:
    assert held_mib(FakeProcess(0, 9 * MIB, psutil.NoSuchProcess(7)), FakeProcess(MIB, 2 * MIB)) == pytest.approx(1.0)


def test_memory_of_no_process_is_nothing() -> None:
    assert held_mib() == 0.0
