"""Completes or embeds every row of a file, through a gateway or with an engine of the run's own.

`survey` checks every line of the input before the first request is sent. `run` writes results beside the output as they arrive; once all
rows are complete, it puts them in place, in the order of the input. If it is interrupted at any point, the same run continues where it
stopped and repeats no complete row. It waits for engines that are busy or missing, and fails once no row completes for `max_stall_s`.

Rows are spec in `rows`, and files in `files.formats`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from deployments.jobs.bulk.row_files import Output, output_of, partial_of
from deployments.jobs.bulk.rows import (
    KINDS,
    STOPPING_REASONS,
    BadRow,
    Kind,
    Row,
    check_options,
    foreign_row,
    grouped_by_prefix,
    output_line,
    request_id,
    request_options,
)
from deployments.jobs.bulk.run import BulkRun
from deployments.jobs.bulk.vector_stores import VectorRow, open_store
from deployments.jobs.failures import JobError, reject_bad_rows, usable
from deployments.jobs.files.formats import input_rows, output_keys, output_vectors
from deployments.jobs.files.storage import exists, remove
from deployments.jobs.progress import JobProgress
from deployments.jobs.reports import ReportFile
from neox_serve.client import AsyncClient, RetryPolicy
from neox_serve.core.errors import ServeError
from neox_serve.core.jobs.rows import RowsWork
from neox_serve.core.jobs.vector_target import VectorTarget
from neox_serve.settings import SettingsError
from neox_serve.settings.slices import JobEngineSettings

_LOCK_POLL_S = 0.2
_UNLIMITED_ATTEMPTS = 1_000_000_000


def survey(kind: str, work: RowsWork) -> dict[int, str]:
    """Checks every line of the input and returns the keys of the good rows by number.

    Writes bad rows to `work.rejects`. Raises JobError if there are bad rows and no such file, or if the request options are wrong.
    """
    keys: dict[int, str] = {}
    bad: list[BadRow] = []
    try:
        check_options(KINDS[kind], work.options)
    except (ServeError, ValueError, TypeError) as error:
        raise JobError(f"--options: {error}", 2) from error
    with usable(work.input):
        for row in input_rows(KINDS[kind], work.input):
            if isinstance(row, BadRow):
                bad.append(row)
            else:
                keys[row.number] = row.key
    reject_bad_rows(work.input, bad, len(keys), work.rejects)
    return keys


async def run(spec: BulkRun, keys: Mapping[int, str], console: Console) -> JobProgress:
    """Completes the surveyed rows and returns the counts. Raises JobError. If it is cancelled, it keeps the rows that are complete."""
    progress = await _complete(spec, keys, console)
    if spec.work.into:
        with usable(spec.work.into), open_store(VectorTarget.parse(spec.work.into)) as store:
            written = store.write(_vectors(spec))
        console.print(f"{written:,} vectors in {spec.work.into}", markup=False, highlight=False)
    return progress


async def _complete(spec: BulkRun, keys: Mapping[int, str], console: Console) -> JobProgress:
    work = spec.work
    with contextlib.ExitStack() as stack:
        stack.enter_context(usable(work.output))
        output = await _open(stack, spec, console)
        if exists(work.output):
            return _completed_before(spec, keys, console)
        foreign = foreign_row(output.completed.keys, keys)
        if foreign is not None:
            raise JobError(
                f"{partial_of(work.output)}: row {foreign} was made from another input; choose another output, or remove this file", 2
            )
        report = ReportFile(spec.report) if spec.report else None
        if report:
            stack.callback(report.flush)
        before = output.completed
        progress = JobProgress(console, len(keys), len(before.positions), errors=before.errors, report=report.record if report else None)
        stack.enter_context(progress)
        await _complete_rows(spec, keys, output, progress)
        output.publish()
    return progress


def _vectors(spec: BulkRun) -> Iterator[VectorRow]:
    """Yields the vectors of a published output, which has every good row of the input, in order. Rows without an id use their number."""
    work = spec.work
    rows = (row for row in input_rows(KINDS[spec.kind], work.input) if isinstance(row, Row))
    for row, vector in zip(rows, output_vectors(work.output), strict=True):
        if vector is not None:
            yield VectorRow(row.id or str(row.number), row.content if isinstance(row.content, str) else "", vector)


def _completed_before(spec: BulkRun, keys: Mapping[int, str], console: Console) -> JobProgress:
    """Returns the counts of an output that exists already. Raises JobError if it was made from another input."""
    work = spec.work
    found = output_keys(work.output)
    if found.keys != keys:
        wrong = foreign_row(found.keys, keys) or next(iter(keys.keys() - found.keys.keys()))
        raise JobError(f"{work.output} exists, and its row {wrong} was not made from {work.input}; choose another output, or remove it", 2)
    remove(partial_of(work.output))
    report = ReportFile(spec.report).record if spec.report else None
    with JobProgress(console, len(keys), len(keys), errors=found.errors, report=report) as progress:
        return progress


async def _complete_rows(spec: BulkRun, keys: Mapping[int, str], output: Output, progress: JobProgress) -> None:
    rows = grouped_by_prefix(row for row in _good_rows(spec, keys) if row.number not in output.completed.positions)
    left = progress.total - progress.done
    if not left:
        return
    max_stall_s = spec.work.max_stall_s
    try:
        async with _backend(spec) as (backend, max_requests), asyncio.timeout(max_stall_s) as stall_timeout:
            progress.restart_rates()
            worker = _Worker(spec, backend, output, progress, stall_timeout)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(max_requests, left)):
                    group.create_task(worker.work(rows))
    except TimeoutError as error:
        raise JobError(f"no row completed for {max_stall_s:g} s; check that the cluster is up", 1) from error
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


@contextlib.asynccontextmanager
async def _backend(spec: BulkRun) -> AsyncIterator[tuple[Any, int]]:
    """Opens the client or the engine, whose methods have the kinds' names; also yields the number of requests in flight.

    Raises JobError.
    """
    work, access = spec.work, spec.access
    if work.own_engine:
        from deployments.jobs.bulk.own_engine import own_engine

        async with own_engine(KINDS[spec.kind].pool, _settings(spec)) as engine:
            yield engine, engine.max_requests
        return
    policy = RetryPolicy(max_attempts=_UNLIMITED_ATTEMPTS, max_wait_s=work.max_stall_s, unreachable_delay_s=1.0)
    async with AsyncClient(access.address, tls=access.client_tls, retry=policy, api_key=access.api_key()) as client:
        yield client, work.concurrency


def _settings(spec: BulkRun) -> JobEngineSettings:
    try:
        return JobEngineSettings.load(spec.config)
    except SettingsError as error:
        raise JobError(f"--config: {error}", 2) from error


@dataclass(frozen=True, slots=True)
class _Worker:
    """Takes rows from a shared iterator until none are left."""

    spec: BulkRun
    backend: Any
    output: Output
    progress: JobProgress
    stall_timeout: asyncio.Timeout

    async def work(self, rows: Iterator[Row]) -> None:
        """Completes rows, one at a time."""
        for row in rows:
            outcome = await self._outcome(row)
            self.output.append(output_line(self.kind, row, outcome))
            self.stall_timeout.reschedule(asyncio.get_running_loop().time() + self.spec.work.max_stall_s)
            if isinstance(outcome, ServeError):
                self.progress.complete_row(tokens=0, error=True)
            else:
                tokens, prompt_tokens = self.kind.tokens(outcome), self.kind.prompt_tokens(outcome)
                self.progress.complete_row(tokens=tokens, prompt_tokens=prompt_tokens, error=False)

    @property
    def kind(self) -> Kind:
        """What to do with each row."""
        return KINDS[self.spec.kind]

    async def _outcome(self, row: Row) -> Any:
        """Returns the result of a row, or the ServeError that completes it."""
        options = request_options(row, self.spec.work.options)
        call = getattr(self.backend, self.kind.name)
        try:
            return await call(row.content, **options, request_id=request_id(self.spec.job_id, row))
        except ServeError as error:
            if error.reason in STOPPING_REASONS:
                raise JobError(f"row {row.number}: {error}", 1) from error
            return error


def _good_rows(spec: BulkRun, keys: Mapping[int, str]) -> Iterator[Row]:
    """Yields the surveyed rows. Raises JobError if the input has changed since the survey."""
    source = spec.work.input
    left = len(keys)
    with usable(source):
        for row in input_rows(KINDS[spec.kind], source):
            if isinstance(row, Row):
                if keys.get(row.number) != row.key:
                    raise JobError(f"{source} changed while it was read: row {row.number} is different now", 1)
                left -= 1
                yield row
    if left:
        raise JobError(f"{source} changed while it was read: {left} rows are missing now", 1)


async def _open(stack: contextlib.ExitStack, spec: BulkRun, console: Console) -> Output:
    """Opens the output; waits if another run still writes to it."""
    file, deadline_s = spec.work.output, asyncio.get_running_loop().time() + spec.work.max_stall_s
    announced = False
    while True:
        try:
            return stack.enter_context(output_of(KINDS[spec.kind], file))
        except BlockingIOError as error:
            if asyncio.get_running_loop().time() > deadline_s:
                raise JobError(f"{file}: another job is writing to it", 1) from error
        if not announced:
            console.print(f"{file}: another job is writing to it; waiting until it ends", markup=False, highlight=False)
            announced = True
        await asyncio.sleep(_LOCK_POLL_S)
