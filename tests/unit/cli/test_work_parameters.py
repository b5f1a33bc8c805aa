"""Parameters of `neox-serve job submit` that are generated from the fields of the work."""

import inspect
from typing import Any

import pytest
import typer

from neox_serve.cli.work_parameters import build_work, work_parameters
from neox_serve.core.jobs.evaluate import EvaluateWork
from neox_serve.core.jobs.finetune import FinetuneWork
from neox_serve.core.jobs.quantize import QuantizeWork
from neox_serve.core.jobs.rows import RowsWork
from neox_serve.core.jobs.work import WORK_TYPES


def annotation_of(parameter: inspect.Parameter) -> Any:
    """Returns typer's description of a parameter."""
    return parameter.annotation.__metadata__[0]


@pytest.mark.parametrize("kind", WORK_TYPES)
def test_every_parameter_has_a_help_text(kind: str) -> None:
    assert all(annotation_of(parameter).help for parameter in work_parameters(WORK_TYPES[kind]))


def test_list_of_names_is_the_last_argument() -> None:
    arguments = [one.name for one in work_parameters(EvaluateWork) if one.default is one.empty]
    assert arguments == ["output", "tasks"]


def test_integer_has_the_limits_of_its_field() -> None:
    (rank,) = (annotation_of(one) for one in work_parameters(FinetuneWork) if one.name == "rank")
    assert (rank.min, rank.max) == (1, 256)


@pytest.mark.parametrize(
    ("work_type", "values", "hint", "said"),
    [
        (RowsWork, {"input": "i", "output": "o", "options": "{"}, "--options", "not valid JSON"),
        (RowsWork, {"input": "i", "output": "o", "options": "[]"}, "--options", "must be a JSON object"),
        (RowsWork, {"input": "i", "output": "o", "max_stall_s": 0.0}, "--max-stall", "it must be in (0, 604800]"),
        (FinetuneWork, {"input": "i", "adapter": "../x"}, "ADAPTER", "it must be a name of"),
        (FinetuneWork, {"input": "i", "adapter": "x", "targets": ["embed_in"]}, "--targets", "it must be one or more of query_key_value"),
        (QuantizeWork, {"scheme": "w2", "output": "o", "calibration": "c", "held_out": "h"}, "SCHEME", "it must be w8a8 or w4a16"),
    ],
)
def test_wrong_value_is_refused_with_its_parameter(work_type: type, values: dict[str, Any], hint: str, said: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        build_work(work_type, values)
    assert (refused.value.param_hint, said in refused.value.message) == (hint, True)
