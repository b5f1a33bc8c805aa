"""Command line arguments of runs, for tests and benchmarks that start a run's process as people do."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from deployments.jobs.access import Access
from deployments.jobs.bulk.run import BulkRun
from neox_serve.core.jobs.options import flag, option_of
from neox_serve.core.jobs.rows import RowsWork


def arguments_of(run: Any) -> list[str]:
    """Returns arguments that describe a run; `parse_arguments` turns them back into it."""
    positional, options = list[str](), list[str]()
    for part in _parts(run):
        for field in dataclasses.fields(part):
            value, option = getattr(part, field.name), option_of(field)
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if option is None or value == default:
                continue
            if option.positional and part is run:
                positional.append(str(value))
            else:
                options += [flag(field.name)] if value is True else [flag(field.name), _text(value)]
    return positional + options


def command_of(module: str, run: Any) -> str:
    """Returns the shell command that does a run with this interpreter."""
    return shlex.join([sys.executable, "-m", module, *arguments_of(run)])


def _parts(run: Any) -> Iterator[Any]:
    """Yields a dataclass instance and those that it contains."""
    yield run
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if dataclasses.is_dataclass(value):
            yield from _parts(value)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else str(value)


def bulk_run(kind: str, source: str, output: str, address: str, job_id: str = "job-1", **options: Any) -> BulkRun:
    """Returns a bulk run; `options` are fields of its work, of its access or of the run itself."""
    work = RowsWork(source, output, **_taken(options, RowsWork))
    return BulkRun(kind, work, job_id, Access(address, **_taken(options, Access)), **options)


def _taken(options: dict[str, Any], part: type) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(part) if field.name in options]
    return {name: options.pop(name) for name in names}
