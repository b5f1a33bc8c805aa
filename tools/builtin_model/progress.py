"""Progress bars of the tool. They show the completed part, the rate, and the remaining time."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")


class _RateColumn(ProgressColumn):
    """Shows units of work per second. The task field `unit` names the unit, and the field `rate` overrides the measured rate."""

    def render(self, task: Task) -> Text:
        rate = task.fields.get("rate") or task.speed
        return Text(f"{rate:,.0f} {task.fields.get('unit', 'items')}/s" if rate else "starting")


def progress_display() -> Progress:
    """Returns a display with rate and remaining time. Tasks may have the fields `unit`, `rate` and `note`."""
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), _RateColumn()]
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), speed_estimate_period=60.0)


def tracked(items: Iterable[T], description: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` while showing their progress."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_display() as display:
        task = display.add_task(description, total=total, unit=unit, note="")
        for item in items:
            yield item
            display.advance(task)
