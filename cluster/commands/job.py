"""`neox-serve job`: bulk work as Ray jobs."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.connection import Connection, connected
from cluster.commands.failures import CommandError
from cluster.commands.inout import JsonOption, print_json, print_view
from cluster.commands.settings import ConfigOption, effective

if TYPE_CHECKING:
    from cluster.jobs import JobInfo, Jobs, Submitted
    from deployments.jobs.bulk import BulkJob

job_app = typer.Typer(help="Run bulk work as Ray jobs.", no_args_is_help=True)
submit_app = typer.Typer(help="Start a job, or find it running.", no_args_is_help=True)
job_app.add_typer(submit_app, name="submit")

DashboardOption = Annotated[
    str | None, typer.Option("--dashboard", metavar="URL", help="Ray's dashboard; absent: that of the cluster that `up` runs here.")
]
IdArgument = Annotated[str, typer.Argument(metavar="ID")]


OutputArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="JSONL, there once all is done; a job that was stopped goes on from what it settled.")
]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")]
DefaultsOption = Annotated[str, typer.Option(metavar="JSON", help="Options of rows that do not set them.")]
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="Requests in flight.")]
SetAsideOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Takes bad rows, which otherwise stop the job.")]
PatienceOption = Annotated[float, typer.Option("--patience", metavar="SECONDS", help="Give up without any progress.")]
NameOption = Annotated[str | None, typer.Option("--name", help="Absent: made of the files and defaults.")]


@submit_app.command(name="generate")
@connected
def submit_generate(  # noqa: PLR0913 - the command's options, one by one
    connection: Connection,
    *,
    source: Annotated[Path, typer.Argument(metavar="IN", help='JSONL: {"prompt": ..., optional "id", "max_tokens", ...} a line.')],
    output: OutputArgument,
    wait: WaitOption = False,
    defaults: DefaultsOption = "{}",
    concurrency: ConcurrencyOption = 32,
    set_aside: SetAsideOption = None,
    patience_s: PatienceOption = 600.0,
    name: NameOption = None,
    dashboard: DashboardOption = None,
) -> None:
    """Complete every row of a JSONL file."""
    work = Work("generate", source, output, defaults, concurrency, set_aside, patience_s, name)
    _submit(work, connection, dashboard, wait=wait)


@submit_app.command(name="embed")
@connected
def submit_embed(  # noqa: PLR0913 - as above
    connection: Connection,
    *,
    source: Annotated[Path, typer.Argument(metavar="IN", help='JSONL: {"text": ..., optional "id", "pooling", ...} a line.')],
    output: OutputArgument,
    wait: WaitOption = False,
    defaults: DefaultsOption = "{}",
    concurrency: ConcurrencyOption = 32,
    set_aside: SetAsideOption = None,
    patience_s: PatienceOption = 600.0,
    name: NameOption = None,
    dashboard: DashboardOption = None,
) -> None:
    """Turn every row of a JSONL file into a vector."""
    work = Work("embed", source, output, defaults, concurrency, set_aside, patience_s, name)
    _submit(work, connection, dashboard, wait=wait)


@dataclass(frozen=True, slots=True)
class Work:
    """What a submission says, as it says it."""

    kind: str
    source: Path
    output: Path
    defaults: str
    concurrency: int
    set_aside: Path | None
    patience_s: float
    name: str | None


def _submit(work: Work, connection: Connection, dashboard: str | None, *, wait: bool) -> None:
    from cluster.jobs import name_of
    from deployments.jobs.bulk import BulkJob

    source, output = work.source.absolute(), work.output.absolute()
    job = BulkJob(
        kind=work.kind,
        input=source,
        output=output,
        address=connection.address,
        job_id=work.name or name_of(work.kind, str(source), str(output), work.defaults),
        concurrency=work.concurrency,
        defaults=_defaults(work.defaults),
        set_aside=work.set_aside.absolute() if work.set_aside else None,
        patience_s=work.patience_s,
        tls=connection.tls,
        api_key_file=_api_key_file(connection),
    )
    rows = _survey(job)
    with _jobs(dashboard, connection.config) as jobs:
        submitted = jobs.submit(job)
        _say_submitted(submitted, rows)
        if wait:
            _follow(jobs, submitted.id)


def _api_key_file(connection: Connection) -> Path | None:
    """A job outlives this command and its environment, and its arguments are there for all to read."""
    if connection.api_key is not None and connection.api_key_file is None:
        raise CommandError("a job reads its API key when it runs: name the file that holds it, with --api-key-file or client.api_key_file")
    return connection.api_key_file.absolute() if connection.api_key_file else None


@job_app.command(name="list")
def list_jobs(dashboard: DashboardOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show all jobs."""
    with _jobs(dashboard, config) as jobs:
        infos = jobs.list()
    if as_json:
        print_json(infos)
        return
    print_view(_table(infos))


@job_app.command()
def status(job_id: IdArgument, dashboard: DashboardOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one job, and the last line it wrote."""
    with _jobs(dashboard, config) as jobs:
        info = jobs.info(job_id)
        last = jobs.logs(job_id).rstrip().rpartition("\n")[2]
    if as_json:
        print_json(info)
        return
    print(f"{info.id}: {info.status.lower()}, {_ran(info)}" + (f"\n{last}" if last else ""))


@job_app.command()
def logs(
    job_id: IdArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    dashboard: DashboardOption = None,
    config: ConfigOption = None,
) -> None:
    """Print what a job writes."""
    with _jobs(dashboard, config) as jobs:
        if follow:
            _follow(jobs, job_id)
        else:
            print(jobs.logs(job_id), end="")


@job_app.command()
def stop(
    job_id: IdArgument,
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait for its end.")] = 30.0,
    dashboard: DashboardOption = None,
    config: ConfigOption = None,
) -> None:
    """Stop a job; submitted again, it goes on where it stopped."""
    with _jobs(dashboard, config) as jobs:
        print(f"{job_id}: {jobs.stop(job_id, timeout_s).status.lower()}")


@contextlib.contextmanager
def _jobs(dashboard: str | None, config: Path | None) -> Iterator["Jobs"]:
    from cluster.jobs import Jobs, JobsError

    try:
        yield Jobs.connect(dashboard or _dashboard_here(config))
    except JobsError as error:
        raise CommandError(str(error)) from error


def _dashboard_here(config: Path | None) -> str:
    from cluster import state

    running = state.running(effective(config).state_folder)
    if running is None:
        raise CommandError("no cluster runs here; start one with `neox-serve up`, or name its Ray dashboard with --dashboard URL")
    return running.dashboard_url


def _survey(job: "BulkJob") -> int:
    """Finds bad rows before anything is started; the job looks again where it runs."""
    from deployments.jobs.bulk import JobError, survey

    try:
        return len(survey(job))
    except JobError as error:
        raise CommandError(str(error)) from error


def _say_submitted(submitted: "Submitted", rows: int) -> None:
    what = "runs already" if submitted.already_running else f"submitted, {rows:,} rows"
    print(f"{submitted.id}: {what}\n  neox-serve job status {submitted.id}\n  neox-serve job logs --follow {submitted.id}", flush=True)


def _follow(jobs: "Jobs", job_id: str) -> None:
    """Prints the job's log to its end. Ctrl-C ends the following, not the job."""
    try:
        info = jobs.follow(job_id, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\n{job_id} goes on; `neox-serve job stop {job_id}` stops it")
        raise
    if info.status != "SUCCEEDED":
        raise CommandError(f"{job_id} {info.status.lower()}: {info.message}")


def _defaults(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--defaults") from error
    if not isinstance(values, dict):
        raise typer.BadParameter("must be a JSON object", param_hint="--defaults")
    return values


def _table(infos: "list[JobInfo]") -> Any:
    from rich.table import Table

    table = Table("job", "status", "ran", "message", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for info in infos:
        table.add_row(info.id, info.status.lower(), _ran(info), info.message)
    return table


def _ran(info: "JobInfo") -> str:
    from cluster.status_view import age

    if info.started_s is None:
        return "not started"
    return age((info.ended_s or time.time()) - info.started_s)
