"""The formats of jobs' files: Parquet if the name ends in .parquet, JSON lines otherwise. Between input and output, rows are JSON lines.

A Parquet input has a column for each key that a row can have; a null value means that the key is absent.

A Parquet output has a row for each row of the input, in the same order. Its columns are "row", "key" and "id"; for generate, "text" and
"finish_reason" of the first completion, and all completions as JSON in "completions"; for embed, "vector", of float32; "prompt_tokens" and
"completion_tokens"; "error_reason" and "error_message".
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from deployments.jobs.bulk.rows import EMBED, GENERATE, BadRow, Kind, Row, read_records, read_rows
from deployments.jobs.files.storage import reading, translated_errors

_ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class OutputKeys:
    """The rows of a published output."""

    keys: dict[int, str]
    """Keys of the input rows, by row number."""
    errors: int
    """Number of rows whose result is an error."""


def is_parquet(file: str) -> bool:
    """Returns whether a file is Parquet, by its name."""
    return file.endswith(".parquet")


def input_rows(kind: Kind, file: str) -> Iterator[Row | BadRow]:
    """Yields the rows of an input. Raises OSError, also if the file is damaged or lacks the column of the content."""
    with reading(file) as stream, translated_errors():
        if is_parquet(file):
            yield from read_records(kind, _records(kind, stream))
        else:
            yield from read_rows(kind, stream)


def output_keys(file: str) -> OutputKeys:
    """Reads the keys of a published output. Raises OSError."""
    keys, errors = dict[int, str](), 0
    for values in _completed_rows(file, ["row", "key", "error_reason"]):
        keys[values["row"]] = values["key"]
        errors += values.get("error", values.get("error_reason")) is not None
    return OutputKeys(keys, errors)


def output_vectors(file: str) -> Iterator[list[float] | None]:
    """Yields the vector of each row of a published output, in order; None if the row's result is an error. Raises OSError."""
    for values in _completed_rows(file, ["vector"]):
        yield values.get("vector")


def _completed_rows(file: str, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of an output: of Parquet only the given columns, of JSON lines all keys."""
    with reading(file) as stream, translated_errors():
        if is_parquet(file):
            for batch in pq.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
        else:
            yield from map(json.loads, stream)


def write_output(kind: Kind, file: str, lines: Iterable[bytes], stream: IO[bytes]) -> None:
    """Writes output lines in the format that the file's name implies."""
    if not is_parquet(file):
        stream.writelines(lines)
        return
    schema, flat = _COLUMNS[kind.name]
    with pq.ParquetWriter(stream, schema) as writer:
        rest = iter(lines)
        while batch := [flat(json.loads(line)) for line in islice(rest, _ROWS_AT_ONCE)]:
            writer.write_table(pa.Table.from_pylist(batch, schema))


def _records(kind: Kind, stream: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    table = pq.ParquetFile(stream)
    names = table.schema_arrow.names
    if kind.field not in names:
        raise OSError(f'there is no column "{kind.field}"; the columns are: {", ".join(names) or "none"}')
    for batch in table.iter_batches(_ROWS_AT_ONCE):
        for values in batch.to_pylist():
            yield {name: value for name, value in values.items() if value is not None}


def _common(values: Mapping[str, Any]) -> dict[str, Any]:
    usage, error = values.get("usage", {}), values.get("error", {})
    return {
        "row": values["row"],
        "key": values["key"],
        "id": values.get("id"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "error_reason": error.get("reason"),
        "error_message": error.get("message"),
    }


def _generated(values: Mapping[str, Any]) -> dict[str, Any]:
    completions = values.get("completions")
    first = completions[0] if completions else {}
    return {
        **_common(values),
        "text": first.get("text", "") if completions else None,
        "finish_reason": first.get("finish", {}).get("reason"),
        "completions": json.dumps(completions, ensure_ascii=False) if completions else None,
    }


def _embedded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**_common(values), "vector": values.get("vector")}


def _schema(*own: tuple[str, Any]) -> Any:
    before = [("row", pa.int64()), ("key", pa.string()), ("id", pa.string())]
    after = [
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("error_reason", pa.string()),
        ("error_message", pa.string()),
    ]
    return pa.schema([*before, *own, *after])


_COLUMNS: Mapping[str, tuple[Any, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    GENERATE.name: (_schema(("text", pa.string()), ("finish_reason", pa.string()), ("completions", pa.string())), _generated),
    EMBED.name: (_schema(("vector", pa.list_(pa.float32()))), _embedded),
}
