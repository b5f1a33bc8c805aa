"""The rows of bulk work: requests, results and what an output file contains. Works on bytes and values, without files.

An input row is a JSON object: {"prompt": text, token ids or messages, optional "id", and any option of `Client.generate` except
request_id}; to embed, {"text": ...} with the options of `Client.embed`. An output row is a line of JSON: the number of the input row as
"row", a digest of the input row as "key", its "id" if it has one, and either the result ("completions", "usage" and "seed"; or "vector" and
"usage") or "error".

A row is complete once its whole line is in the output. The output therefore records what is done. A line that a crash cut short is removed,
and its row is done again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from neox_serve.client import Completion, EmbedResult, GenerateResult, calls
from neox_serve.client.options import EmbedOptions, GenerateOptions
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.jobs import rows as row_kinds
from neox_serve.core.types import Pool

_KEY_CHARACTERS = 16
MAX_GROUPED_ROWS = 8_192
"""Number of rows that are held in memory and grouped at a time."""

STOPPING_REASONS = frozenset(
    {
        Reason.UNAUTHENTICATED,
        Reason.PERMISSION_DENIED,
        Reason.UNKNOWN_MODEL,
        Reason.UNKNOWN_JOB,
        Reason.CANCELLED,
        Reason.OVERLOADED,
        Reason.NO_READY_REPLICA,
        Reason.DRAINING,
        Reason.REPLICA_LOST,
        Reason.QUOTA_EXCEEDED,
    }
)
"""Errors that are not about the row. They stop the run, which can be continued later. All other errors complete their row."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What to do with each row."""

    name: str
    """Name of the kind, which is also the name of the client's method."""
    pool: Pool
    """The pool of engines that does it."""
    field: str
    """Key of the content of a row: the prompt or the text."""
    options: frozenset[str]
    """Keys that a row can have besides `field` and "id"."""
    request: Callable[[Any, Any], object]
    """Builds the request from content and options; raises ServeError, TypeError or ValueError if they are wrong."""
    answer: Callable[[Any], dict[str, Any]]
    """Converts a result to the keys of an output row."""
    tokens: Callable[[Any], int]
    """Returns the tokens that a result used; if the kind generates text, the generated ones."""
    chats: bool = False
    """Whether the content can be a list of chat messages."""
    prompt_tokens: Callable[[Any], int] = lambda _result: 0
    """Returns the prompt tokens of a result, if `tokens` returns generated ones."""


@dataclass(frozen=True, slots=True)
class Row:
    """A valid input row."""

    number: int
    """Number of the line or table row, from 1."""
    key: str
    """Digest of the row's values."""
    id: str | None
    """The row's own id; None if it has none."""
    content: Any
    """Text, token ids or chat messages."""
    options: Mapping[str, Any]
    """Request options that the row sets."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """An input row that is not a valid request."""

    number: int
    """Number of the line or table row, from 1."""
    problem: str
    """What is wrong, for people."""
    line: str
    """The row as it stands in the input."""


@dataclass(frozen=True, slots=True)
class LinePosition:
    """The position of a line in a file, in bytes."""

    offset: int
    """Offset of the first byte."""
    length: int
    """Length, including the newline."""


@dataclass(frozen=True, slots=True)
class CompletedRows:
    """The complete rows of an output file, by their numbers."""

    positions: dict[int, LinePosition]
    """Positions of the rows' lines, in the order of the file."""
    keys: dict[int, str]
    """Keys of the input rows."""
    valid_bytes: int
    """Length of the valid part of the file; what follows was cut short by a crash."""
    errors: int = 0
    """Number of rows whose result is an error."""

    @property
    def in_order(self) -> bool:
        """Whether the rows are in the order of the input."""
        numbers = [*self.positions]
        return numbers == sorted(numbers)


def read_rows(kind: Kind, lines: Iterable[bytes]) -> Iterator[Row | BadRow]:
    """Yields the rows of JSON lines; skips blank lines. A second row with the same "id" is bad."""
    numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    return _distinct(((_read_row(kind, number, line), partial(_shown, line)) for number, line in numbered))


def read_records(kind: Kind, records: Iterable[Mapping[str, Any]]) -> Iterator[Row | BadRow]:
    """Yields the rows of a table, each given as a mapping without absent values. A second row with the same "id" is bad."""
    numbered = ((number, values, partial(_json_text, values)) for number, values in enumerate(records, start=1))
    return _distinct(((_read_record(kind, number, values, shown), shown) for number, values, shown in numbered))


def _distinct(rows: Iterable[tuple[Row | BadRow, Callable[[], str]]]) -> Iterator[Row | BadRow]:
    ids: set[str] = set()
    for row, shown in rows:
        if isinstance(row, Row) and row.id is not None:
            if row.id in ids:
                yield BadRow(row.number, f'"id": {row.id!r} is also the id of an earlier row', shown())
                continue
            ids.add(row.id)
        yield row


def grouped_by_prefix(rows: Iterable[Row], group_rows: int = MAX_GROUPED_ROWS) -> Iterator[Row]:
    """Yields the same rows, with those next to each other whose content begins alike, so that engines can reuse cached prefixes.

    Only `group_rows` rows at a time are reordered.
    """
    remaining = iter(rows)
    while group := list(islice(remaining, group_rows)):
        yield from sorted(group, key=lambda row: json.dumps(row.content))


def request_id(job_id: str, row: Row) -> str:
    """Returns the request id of a row, which is the same for every attempt."""
    return f"{job_id}:{row.number}"


def output_line(kind: Kind, row: Row, outcome: Any) -> bytes:
    """Returns the output line of a row, including the newline. `outcome` is the result or a ServeError."""
    values: dict[str, Any] = {"row": row.number, "key": row.key}
    if row.id is not None:
        values["id"] = row.id
    values |= _error(outcome) if isinstance(outcome, ServeError) else kind.answer(outcome)
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def read_completed(lines: Iterable[bytes]) -> CompletedRows:
    """Returns the complete rows of an output, up to the first line that is not valid. Lines include their newline.

    If a row occurs twice, the first occurrence counts.
    """
    positions: dict[int, LinePosition] = {}
    keys: dict[int, str] = {}
    offset = errors = 0
    for line in lines:
        completed = _parse_output_line(line)
        if completed is None:
            break
        number, key, failed = completed
        if number not in positions:
            positions[number], keys[number] = LinePosition(offset, len(line)), key
            errors += failed
        offset += len(line)
    return CompletedRows(positions, keys, offset, errors)


def foreign_row(completed: Mapping[int, str], keys: Mapping[int, str]) -> int | None:
    """Returns the number of a complete row that was not made from the input with these keys; None if there is none."""
    return next((number for number, key in completed.items() if keys.get(number) != key), None)


def _read_row(kind: Kind, number: int, line: bytes) -> Row | BadRow:
    try:
        values = json.loads(line)
    except UnicodeDecodeError as error:
        return BadRow(number, f"not UTF-8: {error.reason} at byte {error.start}", _shown(line))
    except json.JSONDecodeError as error:
        return BadRow(number, f"not JSON: {error.msg} at character {error.pos}", _shown(line))
    except RecursionError as error:
        return BadRow(number, str(error), _shown(line))
    return _read_record(kind, number, values, partial(_shown, line))


def _read_record(kind: Kind, number: int, values: Any, shown: Callable[[], str]) -> Row | BadRow:
    try:
        return _row(kind, number, values)
    except (ServeError, TypeError, ValueError, RecursionError) as error:
        return BadRow(number, error.message if isinstance(error, ServeError) else str(error), shown())


def _row(kind: Kind, number: int, values: Any) -> Row:
    if not isinstance(values, dict):
        raise TypeError(f"must be a JSON object, got {type(values).__name__}")
    unknown = sorted(values.keys() - kind.options - {kind.field, "id"})
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(unknown)}")
    content, row_id = values.get(kind.field), values.get("id")
    if not (_is_prompt(content) or (kind.chats and _is_chat(content))):
        allowed = "a text, a list of token ids or a list of messages" if kind.chats else "a text or a list of token ids"
        raise ValueError(f'"{kind.field}" must be {allowed}, and must not be empty')
    if row_id is not None and not isinstance(row_id, str):
        raise ValueError('"id" must be a text')
    options = {name: value for name, value in values.items() if name in kind.options}
    check_options(kind, options, content)
    return Row(number, _digest(values), row_id, content, options)


def check_options(kind: Kind, options: Mapping[str, Any], content: Any = "x") -> None:
    """Raises ServeError, ValueError or TypeError if no request can be built from these options."""
    unknown = sorted(options.keys() - kind.options)
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(unknown)}")
    kind.request(content, _converted(options))


def request_options(row: Row, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a row's call: its own, then the job's defaults, and priority BULK unless either sets another one."""
    return _converted({"priority": "bulk", **defaults, **row.options})


def _converted(options: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the keys of logit_bias to numbers, since keys of JSON objects are texts."""
    return {name: _with_integer_keys(value) if name == "logit_bias" else value for name, value in options.items()}


def _with_integer_keys(bias: Any) -> Any:
    return {int(token_id): value for token_id, value in bias.items()} if isinstance(bias, dict) else bias


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, list):
        return bool(prompt) and all(isinstance(token_id, int) and not isinstance(token_id, bool) for token_id in prompt)
    return isinstance(prompt, str) and bool(prompt)


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(message, dict) for message in prompt)


def _digest(values: dict[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, ensure_ascii=True).encode()
    return hashlib.sha256(canonical).hexdigest()[:_KEY_CHARACTERS]


def _parse_output_line(line: bytes) -> tuple[int, str, bool] | None:
    """Returns the number and the key of an output line and whether it is an error; None if the line is not valid."""
    if not line.endswith(b"\n"):
        return None
    try:
        values = json.loads(line)
        number, key, failed = values["row"], values["key"], "error" in values
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (number, key, failed) if isinstance(number, int) and isinstance(key, str) else None


def _error(error: ServeError) -> dict[str, Any]:
    violations = [{"field": violation.field, "description": violation.description} for violation in error.violations]
    return {"error": {"reason": str(error.reason), "message": error.message, "violations": violations}}


def _generated(result: GenerateResult) -> dict[str, Any]:
    (prompt,) = result.results
    values: dict[str, Any] = {"completions": [_completion(each) for each in prompt.completions], "usage": _fields(prompt.usage)}
    if prompt.prompt_logprobs:
        values["prompt_logprobs"] = [dataclasses.asdict(position) for position in prompt.prompt_logprobs]
    return values if result.seed is None else {**values, "seed": result.seed}


def _completion(completion: Completion) -> dict[str, Any]:
    """Returns the fields that are present."""
    values = _fields(completion) | {"finish": _fields(completion.finish)}
    if completion.logprobs:
        values["logprobs"] = [dataclasses.asdict(position) for position in completion.logprobs]
    return {name: value for name, value in values.items() if value not in ((), None)}


def _fields(value: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass of plain values. `asdict` would copy every token."""
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}


def _shown(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r\n")


def _json_text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, default=str)


def _embedded(result: EmbedResult) -> dict[str, Any]:
    """Nine significant digits preserve a float32 exactly."""
    (vector,) = result.vectors
    return {"vector": [float(f"{value:.9g}") for value in vector.tolist()], "usage": dataclasses.asdict(result.usage)}


GENERATE = Kind(
    row_kinds.GENERATE,
    Pool.GENERATION,
    "prompt",
    frozenset(GenerateOptions.__annotations__) - {"request_id"},
    calls.generate,
    _generated,
    lambda result: result.usage.completion_tokens,
    chats=True,
    prompt_tokens=lambda result: result.usage.prompt_tokens,
)
"""Completes the prompt of each row."""
EMBED = Kind(
    row_kinds.EMBED,
    Pool.EMBEDDING,
    "text",
    frozenset(EmbedOptions.__annotations__) - {"request_id"},
    calls.embed,
    _embedded,
    lambda result: result.usage.prompt_tokens,
)
"""Turns the text of each row into a vector."""
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (GENERATE, EMBED)}
"""The kinds by name."""
