"""Work of every kind for tests: valid examples, and for each field a valid value other than its default."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_origin, get_type_hints

from neox_serve.core.jobs.evaluate import EVALUATE, EvaluateWork
from neox_serve.core.jobs.finetune import FINETUNE, FinetuneWork
from neox_serve.core.jobs.options import problems
from neox_serve.core.jobs.quantize import QUANTIZE, QuantizeWork
from neox_serve.core.jobs.rows import EMBED, GENERATE, RowsWork
from neox_serve.core.jobs.work import Work

WORKS: Mapping[str, Work] = {
    GENERATE: RowsWork("in.jsonl", "out.jsonl"),
    EMBED: RowsWork("in.jsonl", "out.jsonl"),
    FINETUNE: FinetuneWork("in.jsonl", "chat"),
    EVALUATE: EvaluateWork(("piqa",), "scores.json"),
    QUANTIZE: QuantizeWork("w8a8", "small", "text.txt", "other.txt"),
}
"""Work with default options, by kind."""

_SPECIAL: Mapping[str, Any] = {
    "into": "lancedb:vectors#words",
    "scheme": "w4a16",
    "tasks": ("piqa", "sciq"),
    "targets": ("dense", "query_key_value"),
    "shots": 0,
    "options": {"max_tokens": 5, "stop": ["\n"], "temperature": 0.25},
}
"""Values that cannot be derived from the type of the field."""


def changed_works() -> Iterator[tuple[str, str, Work]]:
    """Yields the kind, the name of a field and the work in which that field differs from `WORKS`, for every field of every kind."""
    for kind, work in WORKS.items():
        for field in dataclasses.fields(work):
            if kind == GENERATE and field.name == "into":
                continue
            changed = dataclasses.replace(work, **{field.name: _other_value(work, field.name)})
            assert changed != work
            assert not list(problems(changed)), f"choose a valid value of {kind}.{field.name} for the tests"
            yield kind, field.name, changed


def _other_value(work: Work, name: str) -> Any:
    if name in _SPECIAL:
        return _SPECIAL[name]
    value, field_type = getattr(work, name), get_type_hints(type(work))[name]
    if field_type is bool:
        return not value
    if field_type is float:
        return value / 2
    if field_type is int:
        return value + 1
    assert get_origin(field_type) is None, f"add a value of {name} for the tests"
    return "other"
