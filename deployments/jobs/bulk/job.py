"""Completes or embeds every row of a file, through a gateway or by an engine of its own. `python -m deployments.jobs.bulk.job --help`;
rows are described in `rows`, files in `formats`; they may be paths or URLs that fsspec knows.

Every line of the input is checked before the first request is sent. Rows are written beside the output as they finish; once all are, they
are put in its place, in the input's order. Stopped at any point, the same command goes on where it stopped: settled rows are not repeated.
Busy or missing engines are waited for; the job gives up once nothing has been settled for `--max-stall` seconds.

Exit codes: 0 all rows are settled (those with an error included; the last line counts them), 1 stopped by an error, 2 wrong arguments or
bad rows, 130 or 143 interrupted.
"""

import argparse
import asyncio
import contextlib
import json
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from deployments.jobs import access
from deployments.jobs.access import Access
from deployments.jobs.bulk.row_files import Output, output_of, partial_of
from deployments.jobs.bulk.rows import (
    EMBED,
    KINDS,
    STOPPING_REASONS,
    BadRow,
    Kind,
    Row,
    alike_together,
    check_options,
    foreign_row,
    request_id,
    request_options,
    settled_line,
)
from deployments.jobs.bulk.vector_stores import VectorRow, opened
from deployments.jobs.failures import JobError, settle_bad_rows, usable
from deployments.jobs.files.formats import input_rows, settled, settled_vectors
from deployments.jobs.files.storage import exists, remove
from deployments.jobs.progress import JobProgress
from deployments.jobs.reports import ReportFile
from neox_serve.client import AsyncClient, RetryPolicy, Tls
from neox_serve.core.errors import ServeError
from neox_serve.core.jobs.vector_target import ALLOWED, VectorTarget
from neox_serve.settings import SettingsError
from neox_serve.settings.slices import JobEngineSettings

_LOCK_POLL_S = 0.2
_ENDLESS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class BulkJob:
    """What to do. kind: of KINDS. defaults: options for rows that do not set them. rejects: takes bad rows, which otherwise stop the job.

    api_key_file: holds the credential that the job shows, read when it begins; None where none is shown.
    report: file in which it says how far it is; None where nobody asks.
    into: vector database that gets the vectors too, once the output is in its place.
    own_engine: whether the job starts an engine for itself, and calls no gateway. config: neox-serve's settings of that; None: defaults.
    """

    kind: str
    input: str
    output: str
    address: str
    job_id: str
    concurrency: int = 32
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rejects: str | None = None
    max_stall_s: float = 600.0
    tls: Tls | None = None
    api_key_file: Path | None = None
    report: Path | None = None
    into: VectorTarget | None = None
    own_engine: bool = False
    config: Path | None = None

    @property
    def access(self) -> Access:
        """How it reaches the cluster."""
        return Access(self.address, self.tls, self.api_key_file)


def survey(job: BulkJob) -> dict[int, str]:
    """Checks every line; returns the good rows' keys by number. Raises JobError naming bad ones, unless they are to be set aside."""
    keys: dict[int, str] = {}
    bad: list[BadRow] = []
    try:
        check_options(KINDS[job.kind], job.defaults)
    except (ServeError, ValueError, TypeError) as error:
        raise JobError(f"--defaults: {error}", 2) from error
    with usable(job.input):
        for row in input_rows(KINDS[job.kind], job.input):
            if isinstance(row, BadRow):
                bad.append(row)
            else:
                keys[row.number] = row.key
    settle_bad_rows(job.input, bad, len(keys), job.rejects)
    return keys


async def run(job: BulkJob, keys: Mapping[int, str], console: Console) -> JobProgress:
    """Settles the surveyed rows; returns what has been counted. Raises JobError; cancelled, it keeps what is settled."""
    progress = await _settle(job, keys, console)
    if job.into is not None:
        with usable(str(job.into)), opened(job.into) as store:
            written = store.write(_vectors(job))
        console.print(f"{written:,} vectors in {job.into}", markup=False, highlight=False)
    return progress


async def _settle(job: BulkJob, keys: Mapping[int, str], console: Console) -> JobProgress:
    with contextlib.ExitStack() as stack:
        stack.enter_context(usable(job.output))
        output = await _open(stack, job, console)
        if exists(job.output):
            return _done_before(job, keys, console)
        foreign = foreign_row(output.ledger.keys, keys)
        if foreign is not None:
            raise JobError(f"{partial_of(job.output)}: row {foreign} was made from another input; name another output, or remove it", 2)
        report = ReportFile(job.report) if job.report else None
        if report:
            stack.callback(report.flush)
        before = output.ledger
        shown = JobProgress(console, len(keys), len(before.places), errors=before.errors, report=report.tell if report else None)
        progress = stack.enter_context(shown)
        await _settle_all(job, keys, output, progress)
        output.publish()
    return progress


def _vectors(job: BulkJob) -> Iterator[VectorRow]:
    """Of the output in its place, which has each good row of the input in its order; those without an id go by their number."""
    rows = (row for row in input_rows(KINDS[job.kind], job.input) if isinstance(row, Row))
    for row, vector in zip(rows, settled_vectors(job.output), strict=True):
        if vector is not None:
            yield VectorRow(row.id or str(row.number), row.content if isinstance(row.content, str) else "", vector)


def _done_before(job: BulkJob, keys: Mapping[int, str], console: Console) -> JobProgress:
    """Of an output that is in its place. Raises JobError where it is not that of this input."""
    found = settled(job.output)
    if found.keys != keys:
        wrong = foreign_row(found.keys, keys) or next(iter(keys.keys() - found.keys.keys()))
        raise JobError(f"{job.output} is there, and row {wrong} is not that of {job.input}; name another output, or remove it", 2)
    remove(partial_of(job.output))
    report = ReportFile(job.report).tell if job.report else None
    with JobProgress(console, len(keys), len(keys), errors=found.errors, report=report) as progress:
        return progress


async def _settle_all(job: BulkJob, keys: Mapping[int, str], output: Output, progress: JobProgress) -> None:
    rows = alike_together(row for row in _good_rows(job, keys) if row.number not in output.ledger.places)
    left = progress.total - progress.done
    if not left:
        return
    try:
        async with _answerer(job) as (answerer, most), asyncio.timeout(job.max_stall_s) as stall_timeout:
            progress.count_from_now()
            worker = _Worker(job, answerer, output, progress, stall_timeout)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(most, left)):
                    group.create_task(worker.work(rows))
    except TimeoutError as error:
        raise JobError(f"no row was settled for {job.max_stall_s:g} s; is the cluster up?", 1) from error
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


@contextlib.asynccontextmanager
async def _answerer(job: BulkJob) -> AsyncIterator[tuple[Any, int]]:
    """Who answers rows, by methods of the kinds' names, and how many requests it is given at a time. Raises JobError."""
    if job.own_engine:
        from deployments.jobs.bulk.own_engine import own_engine

        async with own_engine(KINDS[job.kind].pool, _settings(job)) as engine:
            yield engine, engine.max_requests
        return
    policy = RetryPolicy(attempts=_ENDLESS, longest_wait_s=job.max_stall_s, unreachable_delay_s=1.0)
    async with AsyncClient(job.address, tls=job.tls, retry=policy, api_key=job.access.api_key()) as client:
        yield client, job.concurrency


def _settings(job: BulkJob) -> JobEngineSettings:
    try:
        return JobEngineSettings.load(job.config)
    except SettingsError as error:
        raise JobError(f"--config: {error}", 2) from error


@dataclass(frozen=True, slots=True)
class _Worker:
    """Takes rows from the shared iterator until there are none left."""

    job: BulkJob
    answerer: Any
    output: Output
    progress: JobProgress
    stall_timeout: asyncio.Timeout

    async def work(self, rows: Iterator[Row]) -> None:
        for row in rows:
            outcome = await self._outcome(row)
            self.output.append(settled_line(self.kind, row, outcome))
            self.stall_timeout.reschedule(asyncio.get_running_loop().time() + self.job.max_stall_s)
            if isinstance(outcome, ServeError):
                self.progress.settled(tokens=0, error=True)
            else:
                tokens, read = self.kind.tokens(outcome), self.kind.prompt_tokens(outcome)
                self.progress.settled(tokens=tokens, prompt_tokens=read, error=False)

    @property
    def kind(self) -> Kind:
        return KINDS[self.job.kind]

    async def _outcome(self, row: Row) -> Any:
        """The client's result, or the ServeError that settles the row."""
        options = request_options(row, self.job.defaults)
        try:
            return await getattr(self.answerer, self.kind.name)(row.content, **options, request_id=request_id(self.job.job_id, row))
        except ServeError as error:
            if error.reason in STOPPING_REASONS:
                raise JobError(f"row {row.number}: {error}", 1) from error
            return error


def _good_rows(job: BulkJob, keys: Mapping[int, str]) -> Iterator[Row]:
    """Those that have been surveyed. Raises JobError where the input is not what it was then."""
    left = len(keys)
    with usable(job.input):
        for row in input_rows(KINDS[job.kind], job.input):
            if isinstance(row, Row):
                if keys.get(row.number) != row.key:
                    raise JobError(f"{job.input} has changed while it was read: row {row.number} is another one", 1)
                left -= 1
                yield row
    if left:
        raise JobError(f"{job.input} has changed while it was read: {left} rows are gone", 1)


async def _open(stack: contextlib.ExitStack, job: BulkJob, console: Console) -> Output:
    """Waits for another run that still writes to it."""
    until_s, said = asyncio.get_running_loop().time() + job.max_stall_s, False
    while True:
        try:
            return stack.enter_context(output_of(KINDS[job.kind], job.output))
        except BlockingIOError as error:
            if asyncio.get_running_loop().time() > until_s:
                raise JobError(f"{job.output}: another job is writing to it", 1) from error
        if not said:
            console.print(f"{job.output}: another job is writing to it; waiting for its end", markup=False, highlight=False)
            said = True
        await asyncio.sleep(_LOCK_POLL_S)


def parse_arguments(arguments: Sequence[str] | None = None) -> BulkJob:
    """The job that the arguments describe; wrong ones exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m deployments.jobs.bulk.job", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("kind", choices=sorted(KINDS), help="what is done with each row")
    parser.add_argument("--input", required=True, help="JSONL or Parquet with a prompt, or a text to embed, in each row")
    parser.add_argument("--output", required=True, help="JSONL or Parquet; there once it is whole")
    parser.add_argument("--job-id", default="bulk", help="first part of every row's request id")
    parser.add_argument("--concurrency", type=_positive, default=32, help="requests in flight")
    parser.add_argument("--defaults", type=_mapping, default={}, help="JSON of options for rows that do not set them")
    parser.add_argument("--rejects", help="file for bad rows; without it they stop the job before it starts")
    parser.add_argument("--max-stall", type=float, default=600.0, dest="max_stall_s", help="seconds without a settled row before giving up")
    parser.add_argument("--into", type=_target, help=f"vector database that gets the vectors too: {ALLOWED}")
    parser.add_argument("--report", type=Path, help="file that says how far the job is, and why it gave up")
    parser.add_argument("--own-engine", action="store_true", help="start an engine for this job, and call no gateway")
    parser.add_argument("--config", type=Path, metavar="FILE", help="neox-serve's settings, for that engine")
    access.add_arguments(parser, needed=False)
    values = vars(parser.parse_args(arguments))
    if bool(values["address"]) == values["own_engine"]:
        parser.error("either --address or --own-engine: where rows are answered")
    if values["into"] and values["kind"] != EMBED.name:
        parser.error("--into takes vectors: it goes with embed")
    reached = access.taken(values)
    return BulkJob(**values, address=reached.address, tls=reached.tls, api_key_file=reached.api_key_file)


def arguments_of(job: BulkJob) -> list[str]:
    """The arguments that describe the job, from which `parse_arguments` makes it again."""
    arguments = [job.kind, "--input", job.input, "--output", job.output, "--job-id", job.job_id]
    arguments += ["--own-engine"] if job.own_engine else job.access.arguments()
    arguments += ["--config", str(job.config)] if job.config else []
    arguments += ["--concurrency", str(job.concurrency), "--max-stall", str(job.max_stall_s)]
    arguments += ["--defaults", json.dumps(dict(job.defaults), sort_keys=True)] if job.defaults else []
    arguments += ["--rejects", job.rejects] if job.rejects else []
    arguments += ["--report", str(job.report)] if job.report else []
    arguments += ["--into", str(job.into)] if job.into else []
    return arguments


def entrypoint_of(job: BulkJob) -> str:
    """The command line that does the job, with this interpreter."""
    return shlex.join([sys.executable, "-m", "deployments.jobs.bulk.job", *arguments_of(job)])


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _target(text: str) -> VectorTarget:
    try:
        return VectorTarget.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _mapping(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return values


async def _run_until_signalled(job: BulkJob, keys: Mapping[int, str], console: Console) -> tuple[JobProgress | None, int]:
    """What was counted and 0; or None and the exit code of the signal that came."""
    task = asyncio.create_task(run(job, keys, console))
    got: list[int] = []

    def stop(number: int) -> None:
        got.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await task, 0
    except asyncio.CancelledError:
        if not got:
            raise
        return None, 128 + got[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; returns the exit code."""
    job, console = parse_arguments(arguments), Console(stderr=True, soft_wrap=True)
    try:
        progress, exit_code = asyncio.run(_run_until_signalled(job, survey(job), console))
    except JobError as error:
        if job.report:
            ReportFile(job.report).give_up(str(error))
        console.print(f"Error: {error}", markup=False, highlight=False)
        return error.exit_code
    if progress is None:
        console.print(
            f"Stopped; what is settled is in {partial_of(job.output)}. The same command goes on from there.",
            markup=False,
            highlight=False,
        )
        return exit_code
    console.print(f"Done: {progress.total:,} rows in {job.output}, {progress.errors} with an error.", markup=False, highlight=False)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
