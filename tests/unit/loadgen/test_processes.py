"""Measuring the memory of processes, with fakes."""

from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from neox_serve.loadgen.processes import resident_mib

MIB = 2**20


class FakeProcess:
    """A process with this much memory. error: raised when its proportional set size is read."""

    def __init__(self, pss: int, rss: int, error: Exception | None = None) -> None:
        self._pss, self._rss, self._error = pss, rss, error

    def memory_full_info(self) -> SimpleNamespace:
        """See psutil."""
        if self._error is not None:
            raise self._error
        return SimpleNamespace(pss=self._pss, rss=self._rss)

    def memory_info(self) -> SimpleNamespace:
        """See psutil."""
        return SimpleNamespace(rss=self._rss)


def held_mib(*processes: FakeProcess) -> float:
    """Returns the memory of fake processes, MiB."""
    return resident_mib([cast("psutil.Process", process) for process in processes])


def test_memory_is_the_sum_of_proportional_parts() -> None:
    assert held_mib(FakeProcess(3 * MIB, 9 * MIB), FakeProcess(MIB // 2, 9 * MIB)) == pytest.approx(3.5)


def test_memory_of_a_process_without_access_is_its_resident_size() -> None:
    assert held_mib(FakeProcess(0, 9 * MIB, psutil.AccessDenied(7)), FakeProcess(MIB, 2 * MIB)) == pytest.approx(10.0)


def test_memory_of_an_ended_process_is_zero() -> None:
    assert held_mib(FakeProcess(0, 9 * MIB, psutil.NoSuchProcess(7)), FakeProcess(MIB, 2 * MIB)) == pytest.approx(1.0)


def test_memory_of_no_process_is_zero() -> None:
    assert held_mib() == 0.0
