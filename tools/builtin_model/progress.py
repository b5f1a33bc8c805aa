"""Progress bars of the job, all alike: how much is done, at what rate, and how long it will still take."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")


class _RateColumn(ProgressColumn):
    """Units of work a second; the task's `unit` field names the unit, its `rate` field overrides the measured rate."""

    def render(self, task: Task) -> Text:
        rate = task.fields.get("rate") or task.speed
        return Text(f"{rate:,.0f} {task.fields.get('unit', 'items')}/s" if rate else "starting")


def progress_display() -> Progress:
    """A display with rate and time left; tasks may carry the fields `unit`, `rate` and `note`."""
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), _RateColumn()]
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), speed_estimate_period=60.0)


def tracked(items: Iterable[T], description: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Pass `items` through, showing how far they are."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_display() as display:
        task = display.add_task(description, total=total, unit=unit, note="")
        for item in items:
            yield item
            display.advance(task)
