"""Options, input and output that several commands share."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

_FILE_COLUMNS = 200
"""Width of tables that are written to a file or a pipe."""

Truncation = Literal["keep_end", "keep_start"]
OnDeadline = Literal["error", "partial"]
Pooling = Literal["last", "mean"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ModelOption = Annotated[str | None, typer.Option(metavar="NAME", help="Model to call. Default: the model that is served.")]
AdapterOption = Annotated[str | None, typer.Option(metavar="NAME", help="LoRA adapter to use. Default: none.")]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", help="Fail if there is no response after this time. Default: no limit.")
]
TextsArgument = Annotated[list[str], typer.Argument(metavar="TEXT...", help='Input texts. "-" reads one text from standard input.')]


def print_view(view: "RenderableType") -> None:
    """Prints a table or another rich renderable."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS).print(view)


def print_json(value: Any) -> None:
    """Prints one line of JSON. The value may be a dataclass, a sequence of them, or anything that the json module accepts."""
    print(json.dumps(_plain(value), ensure_ascii=False, default=_plain_leaf), flush=True)


def read_texts(texts: list[str]) -> list[str]:
    """The arguments, with "-" replaced by all of standard input."""
    return [sys.stdin.read() if text == "-" else text for text in texts]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain_leaf(value: Any) -> Any:
    """Converts frozensets and numpy arrays to lists."""
    return sorted(value) if isinstance(value, frozenset) else value.tolist()
