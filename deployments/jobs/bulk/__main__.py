"""Completes or embeds every row of a file. See `python -m deployments.jobs.bulk --help`.

Exit codes: 0 all rows are complete (the last line counts those with an error), 1 stopped by an error, 2 wrong arguments or bad rows, 130 or
143 interrupted by a signal.
"""

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console

from deployments.jobs.bulk.row_files import partial_of
from deployments.jobs.bulk.run import BulkRun, parse_arguments
from deployments.jobs.bulk.runner import run, survey
from deployments.jobs.failures import JobError
from deployments.jobs.progress import JobProgress
from deployments.jobs.reports import ReportFile


def main(arguments: Sequence[str] | None = None) -> int:
    """Does the run that the arguments describe, and returns the exit code."""
    spec, console = parse_arguments(arguments), Console(stderr=True, soft_wrap=True)
    work = spec.work
    try:
        progress, exit_code = asyncio.run(_run_until_signalled(spec, survey(spec.kind, work), console))
    except JobError as error:
        if spec.report:
            ReportFile(spec.report).record_failure(str(error))
        console.print(f"Error: {error}", markup=False, highlight=False)
        return error.exit_code
    if progress is None:
        console.print(
            f"Stopped; the rows that are complete are in {partial_of(work.output)}. The same command continues from there.",
            markup=False,
            highlight=False,
        )
        return exit_code
    console.print(f"Done: {progress.total:,} rows in {work.output}, {progress.errors} with an error.", markup=False, highlight=False)
    return exit_code


async def _run_until_signalled(spec: BulkRun, keys: Mapping[int, str], console: Console) -> tuple[JobProgress | None, int]:
    """Returns the counts and 0; or None and the exit code if a signal interrupted the run."""
    task = asyncio.create_task(run(spec, keys, console))
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await task, 0
    except asyncio.CancelledError:
        if not received:
            raise
        return None, 128 + received[0]


if __name__ == "__main__":
    sys.exit(main())
