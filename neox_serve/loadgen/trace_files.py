"""Reads recordings of traffic from files and reports errors in them.

* Azure's CSV format: TIMESTAMP, ContextTokens, GeneratedTokens. Source: AzureLLMInferenceTrace in Azure/AzurePublicDataset.
* Mooncake's JSONL format: timestamp (ms), input_length, output_length, and one hash id for each 512 tokens of the prompt. Prompts with
  equal leading ids share these tokens. Source: kvcache-ai/Mooncake.
* Our own JSONL format: "prompt" (text) or "token_ids", "max_tokens", and optionally "at_s", on every line or on none.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, TextIO

from neox_serve.core.types import TokenIds
from neox_serve.loadgen.workloads import Prompt

MOONCAKE_BLOCK_TOKENS = 512
"""Prompt tokens per hash id."""
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceError(ValueError):
    """A file is not a valid recording. The message names the file, line, field and value."""


class TraceKind(Enum):
    """Format of a recording."""

    AZURE = "azure"
    MOONCAKE = "mooncake"
    PROMPTS = "prompts"


@dataclass(frozen=True, slots=True)
class Row:
    """A recorded request, with the lengths in the file."""

    recorded_s: float | None
    """None if the recording has no times."""
    input_tokens: int | None
    """None if the prompt is text."""
    output_tokens: int
    prompt: Prompt | None = None
    """None if only the length is recorded."""
    hash_ids: tuple[int, ...] = ()


def kind_of(path: Path) -> TraceKind:
    """Determines the format from the file name and, for JSONL, from the first line. Raises TraceError."""
    if path.suffix == ".csv":
        return TraceKind.AZURE
    with _opened(path) as file:
        first = next(_json_lines(path, file), None)
    if first is None:
        raise TraceError(f"{path}: the file is empty")
    return TraceKind.MOONCAKE if "hash_ids" in first.values else TraceKind.PROMPTS


def read_rows(path: Path, kind: TraceKind) -> Iterator[Row]:
    """Yields the requests in order. Raises TraceError."""
    lines_of, row_of = _READERS[kind]
    before: Row | None = None
    with _opened(path) as file:
        for line in lines_of(path, file):
            row = row_of(line)
            _check_order(line, row, before)
            yield row
            before = row


@dataclass(frozen=True, slots=True)
class _Line:
    """The fields of one line, with methods that check and convert them."""

    path: Path
    number: int
    values: Mapping[str, Any]

    def integer(self, field: str, minimum: int) -> int:
        """Returns an integer field; CSV has it as text."""
        value = self._get(field)
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if not _is_integer(value, minimum):
            self.wrong(field, f"must be an integer of at least {minimum}")
        return int(value)

    def integers(self, field: str) -> TokenIds:
        """Returns a field that is a non-empty list of non-negative integers."""
        values = self._get(field)
        if not isinstance(values, list) or not values or not all(_is_integer(value, 0) for value in values):
            self.wrong(field, "must be a list of non-negative integers")
        return tuple(values)

    def seconds(self, field: str) -> float:
        """Returns a field that is a non-negative number."""
        value = self._get(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            self.wrong(field, "must be a non-negative number")
        return float(value)

    def text(self, field: str) -> str:
        """Returns a field that is a non-empty text."""
        value = self._get(field)
        return value if isinstance(value, str) and value else self.wrong(field, "must be a non-empty text")

    def wrong(self, field: str, must: str) -> NoReturn:
        """Raises TraceError for a field. must: what the value must be."""
        raise TraceError(f"{self.path}:{self.number}: {field}: {must}, got {self.values.get(field)!r:.100}")

    def _get(self, field: str) -> Any:
        if self.values.get(field) is None:
            raise TraceError(f"{self.path}:{self.number}: {field}: missing")
        return self.values[field]


def _azure_row(line: _Line) -> Row:
    text = line.text("TIMESTAMP")
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        line.wrong("TIMESTAMP", "must be a date and time")
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return Row(at.timestamp(), line.integer("ContextTokens", 1), line.integer("GeneratedTokens", 1))


def _mooncake_row(line: _Line) -> Row:
    input_tokens, hash_ids = line.integer("input_length", 1), line.integers("hash_ids")
    blocks = -(-input_tokens // MOONCAKE_BLOCK_TOKENS)
    if len(hash_ids) != blocks:
        line.wrong("hash_ids", f"must be {blocks} ids for an input_length of {input_tokens}")
    return Row(line.seconds("timestamp") / 1e3, input_tokens, line.integer("output_length", 1), hash_ids=hash_ids)


def _prompt_row(line: _Line) -> Row:
    if ("prompt" in line.values) == ("token_ids" in line.values):
        line.wrong("prompt", 'exactly one of "prompt" and "token_ids" must be given')
    prompt: Prompt = line.text("prompt") if "prompt" in line.values else line.integers("token_ids")
    recorded_s = line.seconds("at_s") if "at_s" in line.values else None
    return Row(recorded_s, None if isinstance(prompt, str) else len(prompt), line.integer("max_tokens", 1), prompt)


def _check_order(line: _Line, row: Row, before: Row | None) -> None:
    if before is None:
        return
    if (row.recorded_s is None) != (before.recorded_s is None):
        line.wrong("at_s", "must be given on every line or on none")
    if row.recorded_s is not None and before.recorded_s is not None and row.recorded_s < before.recorded_s:
        field = next(name for name in ("TIMESTAMP", "timestamp", "at_s") if name in line.values)
        line.wrong(field, "must not be earlier than on the line before")


def _csv_lines(path: Path, file: Iterable[str]) -> Iterator[_Line]:
    reader = csv.DictReader(file)
    missing = [name for name in _AZURE_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise TraceError(f"{path}:1: {missing[0]}: missing column; the file has {', '.join(reader.fieldnames or ['none'])}")
    for values in reader:
        yield _Line(path, reader.line_num, values)


def _json_lines(path: Path, file: Iterable[str]) -> Iterator[_Line]:
    for number, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise TraceError(f"{path}:{number}: invalid JSON: {error}, got {text.strip()!r:.100}") from error
        if not isinstance(values, dict):
            raise TraceError(f"{path}:{number}: must be a JSON object, got {text.strip()!r:.100}")
        yield _Line(path, number, values)


_Lines = Callable[[Path, Iterable[str]], Iterator[_Line]]
_READERS: Mapping[TraceKind, tuple[_Lines, Callable[[_Line], Row]]] = {
    TraceKind.AZURE: (_csv_lines, _azure_row),
    TraceKind.MOONCAKE: (_json_lines, _mooncake_row),
    TraceKind.PROMPTS: (_json_lines, _prompt_row),
}


def _opened(path: Path) -> TextIO:
    """Opens a file. Invalid UTF-8 becomes U+FFFD, so that the field that contains it is reported."""
    try:
        return path.open(encoding="utf-8", errors="replace", newline="")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error


def _is_integer(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum
