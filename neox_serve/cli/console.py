"""What goes in and out of the commands: words of options, texts from standard input, results as JSON."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

_FILE_COLUMNS = 200
Truncation = Literal["keep_end", "keep_start"]
OnDeadline = Literal["error", "partial"]
Pooling = Literal["last", "mean"]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_view(view: "RenderableType") -> None:
    """A table or the like; as wide as it needs where no terminal limits it."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS).print(view)


def print_json(value: Any) -> None:
    """One line of JSON. Takes dataclasses, sequences of them, and what json takes."""
    print(json.dumps(_plain(value), ensure_ascii=False, default=_plain_leaf), flush=True)


def read_texts(texts: list[str]) -> list[str]:
    """The arguments; "-" stands for all of standard input."""
    return [sys.stdin.read() if text == "-" else text for text in texts]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain_leaf(value: Any) -> Any:
    """frozensets and numpy arrays."""
    return sorted(value) if isinstance(value, frozenset) else value.tolist()
