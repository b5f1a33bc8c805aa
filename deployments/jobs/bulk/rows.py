"""The rows of bulk work: what goes in, what is settled, what comes out. Pure: bytes and values, no files.

An input row is an object of JSON: {"prompt": text, token ids or messages, optional "id", and any option of `Client.generate` but
request_id}; to embed, {"text": ...} with the options of `Client.embed`. An output row is a line of JSON: the input row's number as "row", a
digest of the input row as "key", its "id" where it has one, and either what came of it ("completions", "usage" and "seed"; or "vector" and
"usage") or "error".

A row is settled once its whole line is in the output. So the output is its own record of what is done, and a line that a crash tore is cut
off and its row done again.
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
from neox_serve.core.types import Pool

_KEY_CHARACTERS = 16
MAX_ARRANGED = 8_192
"""Rows that are in memory at a time."""

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
"""Errors that say nothing of the row: they stop the job, which resumes later. All others settle their row."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a job does with each row; its name is that of the client's method. pool: that answers. field: the key of what goes in.

    options: keys that may stand beside it. request: makes the call, which finds what is wrong with a row. answer: for the output. tokens:
    that an answer took. prompt_tokens: that were read, where tokens are those that were generated. chats: whether messages may go in.
    """

    name: str
    pool: Pool
    field: str
    options: frozenset[str]
    request: Callable[[Any, Any], object]
    answer: Callable[[Any], dict[str, Any]]
    tokens: Callable[[Any], int]
    chats: bool = False
    prompt_tokens: Callable[[Any], int] = lambda _result: 0


@dataclass(frozen=True, slots=True)
class Row:
    """One request. number: line of the input, from 1. key: digest of the line's meaning. content: text or token ids."""

    number: int
    key: str
    id: str | None
    content: Any
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is no request. problem: for people."""

    number: int
    problem: str
    line: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a settled row stands in the output."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """What an output holds. places: of settled rows, by number. keys: of the same. errors: of them, those that came to an error.

    whole_bytes: what follows is torn and to be cut off.
    """

    places: dict[int, Place]
    keys: dict[int, str]
    whole_bytes: int
    errors: int = 0

    @property
    def in_order(self) -> bool:
        """Whether the rows stand in the order of the input."""
        numbers = [*self.places]
        return numbers == sorted(numbers)


def read_rows(kind: Kind, lines: Iterable[bytes]) -> Iterator[Row | BadRow]:
    """The rows of lines of JSON, blank lines left out. A second row with the same "id" is bad."""
    numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    return _distinct(((_read_row(kind, number, line), partial(_shown, line)) for number, line in numbered))


def read_records(kind: Kind, records: Iterable[Mapping[str, Any]]) -> Iterator[Row | BadRow]:
    """The rows of a table, likewise; each a mapping without what is absent."""
    numbered = ((number, values, partial(_told, values)) for number, values in enumerate(records, start=1))
    return _distinct(((_read_record(kind, number, values, shown), shown) for number, values, shown in numbered))


def _distinct(rows: Iterable[tuple[Row | BadRow, Callable[[], str]]]) -> Iterator[Row | BadRow]:
    ids: set[str] = set()
    for row, shown in rows:
        if isinstance(row, Row) and row.id is not None:
            if row.id in ids:
                yield BadRow(row.number, f'"id": {row.id!r} stands on an earlier line too', shown())
                continue
            ids.add(row.id)
        yield row


def alike_together(rows: Iterable[Row], most: int = MAX_ARRANGED) -> Iterator[Row]:
    """The same rows, those beside each other whose content begins alike, so that engines find what they have read before.

    most: rows that are looked at together.
    """
    remaining = iter(rows)
    while together := list(islice(remaining, most)):
        yield from sorted(together, key=lambda row: json.dumps(row.content))


def request_id(job_id: str, row: Row) -> str:
    """The same for every try of a row."""
    return f"{job_id}:{row.number}"


def settled_line(kind: Kind, row: Row, outcome: Any) -> bytes:
    """The output line of a row, newline included."""
    values: dict[str, Any] = {"row": row.number, "key": row.key}
    if row.id is not None:
        values["id"] = row.id
    values |= _error(outcome) if isinstance(outcome, ServeError) else kind.answer(outcome)
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def read_ledger(lines: Iterable[bytes]) -> Ledger:
    """What an output holds, up to the first line that is not whole; lines come with their newline. A row counts where it stands first."""
    places: dict[int, Place] = {}
    keys: dict[int, str] = {}
    offset = errors = 0
    for line in lines:
        settled = _settled(line)
        if settled is None:
            break
        number, key, failed = settled
        if number not in places:
            places[number], keys[number] = Place(offset, len(line)), key
            errors += failed
        offset += len(line)
    return Ledger(places, keys, offset, errors)


def foreign_row(settled: Mapping[int, str], keys: Mapping[int, str]) -> int | None:
    """A settled row that was not made from the input whose keys these are, by row number; None where all belong to it."""
    return next((number for number, key in settled.items() if keys.get(number) != key), None)


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
        allowed = "a text, a list of token ids or of messages" if kind.chats else "a text or a list of token ids"
        raise ValueError(f'"{kind.field}" must be {allowed}, not empty')
    if row_id is not None and not isinstance(row_id, str):
        raise ValueError('"id" must be a text')
    options = {name: value for name, value in values.items() if name in kind.options}
    check_options(kind, options, content)
    return Row(number, _digest(values), row_id, content, options)


def check_options(kind: Kind, options: Mapping[str, Any], content: Any = "x") -> None:
    """Raises ServeError, ValueError or TypeError where a request cannot be made of these options."""
    unknown = sorted(options.keys() - kind.options)
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(unknown)}")
    kind.request(content, _converted(options))


def request_options(row: Row, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the row's call: its own over the job's. It takes what others leave (BULK), unless these say otherwise."""
    return _converted({"priority": "bulk", **defaults, **row.options})


def _converted(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's keys are texts, token ids are numbers."""
    return {name: _with_whole_keys(value) if name == "logit_bias" else value for name, value in options.items()}


def _with_whole_keys(bias: Any) -> Any:
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


def _settled(line: bytes) -> tuple[int, str, bool] | None:
    """Number and key of an output line, and whether it is an error; None where it is torn."""
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
    """Without what is absent."""
    values = _fields(completion) | {"finish": _fields(completion.finish)}
    if completion.logprobs:
        values["logprobs"] = [dataclasses.asdict(position) for position in completion.logprobs]
    return {name: value for name, value in values.items() if value not in ((), None)}


def _fields(value: Any) -> dict[str, Any]:
    """Of a dataclass of plain values; `asdict` would copy every token."""
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}


def _shown(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r\n")


def _told(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, default=str)


def _embedded(result: EmbedResult) -> dict[str, Any]:
    """Nine digits bring a float32 back as it was."""
    (vector,) = result.vectors
    return {"vector": [float(f"{value:.9g}") for value in vector.tolist()], "usage": dataclasses.asdict(result.usage)}


GENERATE = Kind(
    "generate",
    Pool.GENERATION,
    "prompt",
    frozenset(GenerateOptions.__annotations__) - {"request_id"},
    calls.generate,
    _generated,
    lambda result: result.usage.completion_tokens,
    chats=True,
    prompt_tokens=lambda result: result.usage.prompt_tokens,
)
EMBED = Kind(
    "embed",
    Pool.EMBEDDING,
    "text",
    frozenset(EmbedOptions.__annotations__) - {"request_id"},
    calls.embed,
    _embedded,
    lambda result: result.usage.prompt_tokens,
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (GENERATE, EMBED)}
