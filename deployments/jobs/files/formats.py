"""What is in files of jobs: Parquet where the name ends in .parquet, JSON lines otherwise. In between everything is lines of JSON.

A Parquet input has a column for each key that a row may have; what is null in a row is absent. A Parquet output has a row for each row of
the input, in its order: "row", "key", "id"; of generate "text" and "finish_reason" of the first completion, and all of them as JSON in
"completions"; of embed "vector", of float32; "prompt_tokens", "completion_tokens"; "error_reason" and "error_message".
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from deployments.jobs.bulk.rows import EMBED, GENERATE, BadRow, Kind, Row, read_records, read_rows
from deployments.jobs.files.storage import reading, told

_ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Settled:
    """What an output holds. keys: of its rows, by number. errors: of them, those that came to an error."""

    keys: dict[int, str]
    errors: int


def is_parquet(file: str) -> bool:
    """By its name."""
    return file.endswith(".parquet")


def input_rows(kind: Kind, file: str) -> Iterator[Row | BadRow]:
    """The rows of an input, one at a time. Raises OSError, also where the file is damaged or lacks the column."""
    with reading(file) as stream, told():
        if is_parquet(file):
            yield from read_records(kind, _records(kind, stream))
        else:
            yield from read_rows(kind, stream)


def settled(file: str) -> Settled:
    """Of an output in its place. Raises OSError."""
    keys, errors = dict[int, str](), 0
    for values in _completed_rows(file, ["row", "key", "error_reason"]):
        keys[values["row"]] = values["key"]
        errors += values.get("error", values.get("error_reason")) is not None
    return Settled(keys, errors)


def settled_vectors(file: str) -> Iterator[list[float] | None]:
    """Of an embed job's output in its place: each row's vector, in their order; None where it came to an error. Raises OSError."""
    for values in _completed_rows(file, ["vector"]):
        yield values.get("vector")


def _completed_rows(file: str, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    """columns: that are read where it is Parquet; lines of JSON come whole."""
    with reading(file) as stream, told():
        if is_parquet(file):
            for batch in pq.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
        else:
            yield from map(json.loads, stream)


def write_output(kind: Kind, file: str, lines: Iterable[bytes], stream: IO[bytes]) -> None:
    """Writes settled rows' lines as the file's name says."""
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
        raise OSError(f'there is no column "{kind.field}"; the columns are {", ".join(names) or "none"}')
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
