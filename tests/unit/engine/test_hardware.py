"""Properties of the machine, and what follows from them."""

import pytest

from neox_serve.engine.hardware import dtype_for, this_machine


@pytest.mark.parametrize(
    ("wanted", "flags", "on_gpu", "dtype"),
    [
        ("auto", {"avx2"}, False, "float32"),
        ("auto", {"avx2", "avx512f"}, False, "float32"),
        ("auto", {"avx512_bf16"}, False, "bfloat16"),
        ("auto", {"amx_bf16"}, False, "bfloat16"),
        ("float32", {"amx_bf16"}, False, "float32"),
        ("auto", {"avx2"}, True, "auto"),
    ],
)
def test_dtype_follows_the_cpu(wanted: str, flags: set[str], on_gpu: bool, dtype: str) -> None:
    assert dtype_for(wanted, flags, on_gpu=on_gpu) == dtype


def test_this_machine_has_cores_and_memory() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_gib > 0.1
