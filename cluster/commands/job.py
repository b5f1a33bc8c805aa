"""`neox-serve job`: batch jobs, through the gateway's BatchService."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.commands.connection import Connection, connected, interruptible
from cluster.commands.failures import CommandError
from cluster.commands.inout import JsonOption, print_json, print_view
from cluster.commands.settings import effective
from neox_serve.core.evaluating import AS_TASKS_HAVE_IT, EVALUATE, EvaluateWork
from neox_serve.core.finetuning import FINETUNE, TARGETS, FinetuneWork
from neox_serve.core.jobs import RowsWork, Work
from neox_serve.core.vector_target import ALLOWED, VectorTarget

if TYPE_CHECKING:
    from cluster.job_logs import JobLogs
    from neox_serve.client import BatchJob, Client

job_app = typer.Typer(help="Run bulk work as batch jobs.", no_args_is_help=True)
submit_app = typer.Typer(help="Create a job, or find it running.", no_args_is_help=True)
job_app.add_typer(submit_app, name="submit")

DashboardOption = Annotated[
    str | None, typer.Option("--dashboard", metavar="URL", help="Ray's dashboard; absent: that of the cluster that `up` runs here.")
]
IdArgument = Annotated[str, typer.Argument(metavar="ID")]
_WHERE = "A path or URL; with a credential, a name in the tenant's folder of the cluster."
_WHOSE = f"Parquet where it ends in .parquet. {_WHERE}"
_DEFAULTS = FinetuneWork("", "")


def _submission(kind: str, row: str) -> Callable[..., None]:
    """The command that submits one kind of work."""

    @connected
    @interruptible
    def submit(  # noqa: PLR0913 - the command's options, one by one
        connection: Connection,
        *,
        source: Annotated[str, typer.Argument(metavar="IN", help=f"JSONL: {row} a line. {_WHOSE}")],
        output: Annotated[str, typer.Argument(metavar="OUT", help="Likewise; there once all rows are settled.")],
        wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Watch the job to its end.")] = False,
        defaults: Annotated[str, typer.Option(metavar="JSON", help="Options of rows that do not set them.")] = "{}",
        concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 32,
        set_aside: Annotated[str, typer.Option(metavar="FILE", help="Takes bad rows, which otherwise fail the job.")] = "",
        patience_s: Annotated[float, typer.Option("--patience", metavar="SECONDS", help="Fail without any progress.")] = 600.0,
        into: Annotated[
            str, typer.Option(metavar="TARGET", hidden=kind != "embed", help=f"Vector database that gets the vectors too: {ALLOWED}.")
        ] = "",
        name: Annotated[str | None, typer.Option("--name", help="Its request id; absent: made of the work.")] = None,
    ) -> None:
        source, output, set_aside = (_as_known_there(connection, file) for file in (source, output, set_aside))
        into = _target_as_known_there(connection, into)
        work = RowsWork(source, output, _object(defaults), set_aside, concurrency, patience_s, into)
        if not connection.shows_credential:
            _survey(kind, work)
        with connection.client() as client:
            options = {each: value for each, value in asdict(work).items() if each not in {"input", "output"}}

            def create(request_id: str) -> "BatchJob":
                return client.create_job(kind, source, output, request_id=request_id, **options)  # type: ignore[arg-type]

            _submitted(client, name or _name(kind, work), create, wait=wait)

    return submit


submit_app.command(name="generate", help="Complete every row of a file.")(
    _submission("generate", '{"prompt": ..., optional "id", "max_tokens", ...}')
)
submit_app.command(name="embed", help="Turn every row of a file into a vector.")(
    _submission("embed", '{"text": ..., optional "id", "pooling", ...}')
)


@submit_app.command()
@connected
@interruptible
def finetune(  # noqa: PLR0913 - the command's options, one by one
    connection: Connection,
    *,
    source: Annotated[
        str, typer.Argument(metavar="IN", help='JSONL: {"prompt": ..., "completion": ...} or {"messages": [...]} a line. ' + _WHERE)
    ],
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Its name; served as TENANT/NAME, or as NAME where for all.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Watch the job to its end.")] = False,
    rank: Annotated[int, typer.Option(min=1, help="Of the matrices that are added.")] = _DEFAULTS.rank,
    alpha: Annotated[float, typer.Option(help="Their product is scaled by alpha / rank.")] = _DEFAULTS.alpha,
    target: Annotated[list[str] | None, typer.Option(help=f"Matrix that gets them, of {', '.join(TARGETS)}; repeatable.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times that each example is seen, at most.")] = _DEFAULTS.epochs,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = _DEFAULTS.learning_rate,
    batch_tokens: Annotated[int, typer.Option(min=1, help="About so many an optimizer step.")] = _DEFAULTS.batch_tokens,
    evaluation_fraction: Annotated[float, typer.Option(help="Of the examples, kept out to measure on.")] = _DEFAULTS.evaluation_fraction,
    early_stop_epochs: Annotated[
        int, typer.Option("--early-stop", min=0, help="Epochs without a smaller evaluation loss that end it; 0: none do.")
    ] = _DEFAULTS.early_stop_epochs,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of examples and of the first weights.")] = _DEFAULTS.seed,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train together.")] = _DEFAULTS.workers,
    set_aside: Annotated[str, typer.Option(metavar="FILE", help="Takes bad rows, which otherwise fail the job.")] = "",
    name: Annotated[str | None, typer.Option("--name", help="Its request id; absent: made of the work.")] = None,
) -> None:
    """Train a LoRA adapter on examples; it is served once the job has succeeded."""
    source, set_aside = (_as_known_there(connection, file) for file in (source, set_aside))
    work = FinetuneWork(
        source,
        adapter,
        set_aside,
        rank=rank,
        alpha=alpha,
        targets=tuple(target or TARGETS),
        epochs=epochs,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
        evaluation_fraction=evaluation_fraction,
        early_stop_epochs=early_stop_epochs,
        seed=seed,
        workers=workers,
    )
    options = {each: value for each, value in asdict(work).items() if each not in {"input", "adapter"}}
    with connection.client() as client:

        def create(request_id: str) -> "BatchJob":
            return client.create_finetune(source, adapter, request_id=request_id, **options)

        _submitted(client, name or _name(FINETUNE, work), create, wait=wait)


@submit_app.command()
@connected
@interruptible
def evaluate(  # noqa: PLR0913 - the command's options, one by one
    connection: Connection,
    *,
    output: Annotated[str, typer.Argument(metavar="OUT", help=f"JSON: the results, in the harness's form. {_WHERE}")],
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="As lm-evaluation-harness names them.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Watch the job to its end.")] = False,
    adapter: Annotated[str, typer.Option(help="LoRA adapter; absent: the model itself.")] = "",
    shots: Annotated[int | None, typer.Option(min=0, help="Examples in each prompt; absent: as each task has it.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Questions of each task; 0: all.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 8,
    name: Annotated[str | None, typer.Option("--name", help="Its request id; absent: made of the work.")] = None,
) -> None:
    """Measure what is served on tasks of lm-evaluation-harness."""
    output = _as_known_there(connection, output)
    work = EvaluateWork(tuple(tasks), output, adapter, AS_TASKS_HAVE_IT if shots is None else shots, limit, concurrency)
    with connection.client() as client:

        def create(request_id: str) -> "BatchJob":
            return client.create_evaluation(
                tasks, output, request_id=request_id, adapter=adapter, shots=shots, limit=limit, concurrency=concurrency
            )

        _submitted(client, name or _name(EVALUATE, work), create, wait=wait)


@job_app.command(name="list")
@connected
def list_jobs(
    connection: Connection,
    most: Annotated[int, typer.Option("--most", min=1, max=1_000, help="Jobs shown.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show the newest jobs."""
    from cluster import job_view

    with connection.client() as client:
        jobs = client.jobs(page_size=most).jobs
    if as_json:
        print_json(list(jobs))
        return
    print_view(job_view.table(jobs, time.time()))


@job_app.command()
@connected
def status(connection: Connection, job_id: IdArgument, as_json: JsonOption = False) -> None:
    """Show one job."""
    from cluster import job_view

    with connection.client() as client:
        job = client.job(job_id)
    if as_json:
        print_json(job)
        return
    print("\n".join(job_view.lines(job, time.time())))


@job_app.command()
@connected
@interruptible
def watch(connection: Connection, job_id: IdArgument) -> None:
    """Watch a job to its end. Ctrl-C ends the watching, not the job."""
    with connection.client() as client:
        _watch(client, job_id)


@job_app.command()
@connected
def cancel(connection: Connection, job_id: IdArgument) -> None:
    """End a job, and take away what it has written so far."""
    with connection.client() as client:
        job = client.cancel_job(job_id)
    print(f"{job.job_id}: {'is being cancelled' if job.cancel_requested and not job.state.ended else job.state.lower()}")


@job_app.command()
@connected
def logs(
    connection: Connection,
    job_id: IdArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until its run ends.")] = False,
    dashboard: DashboardOption = None,
) -> None:
    """Print what a job's last run writes; for those who can reach Ray's dashboard."""
    from cluster.job_logs import JobLogsError

    with connection.client() as client:
        job = client.job(job_id)
    if not job.run_id:
        raise CommandError(f"{job_id} has not been run yet")
    try:
        found = _job_logs(dashboard, connection.config)
        if follow:
            found.follow(job.run_id, lambda text: print(text, end="", flush=True))
        else:
            print(found.read(job.run_id), end="")
    except JobLogsError as error:
        raise CommandError(str(error)) from error


def _as_known_there(connection: Connection, file: str) -> str:
    """Tenants name files in their folder; who needs no credential is on the cluster's own machine, with paths as they are here."""
    if not file or connection.shows_credential or "://" in file:
        return file
    return str(Path(file).absolute())


def _target_as_known_there(connection: Connection, text: str) -> str:
    """A vector database, likewise."""
    if not text:
        return text
    try:
        target = VectorTarget.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--into") from error
    return str(replace(target, place=_as_known_there(connection, target.place)))


def _survey(kind: str, work: RowsWork) -> None:
    """Finds bad rows before anything is created; the job looks again where it runs."""
    from deployments.jobs.bulk import BulkJob, survey
    from deployments.jobs.failures import JobError

    try:
        survey(BulkJob(kind, work.input, work.output, "", "", defaults=work.options, set_aside=work.set_aside or None))
    except JobError as error:
        raise CommandError(str(error)) from error


def _name(kind: str, work: Work) -> str:
    """Made of all that the work is: the same work, the same name."""
    return f"{kind}-{hashlib.sha256(json.dumps(asdict(work), sort_keys=True).encode()).hexdigest()[:12]}"


def _submitted(client: "Client", name: str, create: Callable[[str], "BatchJob"], *, wait: bool) -> None:
    """Creates the job of that name; where that has ended, the next one, which finds done what it has done."""
    attempts = count(2)
    job = create(name)
    while job.state.ended:
        job = create(f"{name}-{next(attempts)}")
    began = "runs already" if job.run_id else "created"
    print(f"{job.job_id}: {began}\n  neox-serve job status {job.job_id}\n  neox-serve job watch {job.job_id}", flush=True)
    if wait:
        _watch(client, job.job_id)


def _watch(client: "Client", job_id: str) -> None:
    from rich.console import Console

    from cluster import job_view

    job = job_view.follow(client.watch_job(job_id), Console(stderr=True, soft_wrap=True))
    if job is None or job.state != "SUCCEEDED":
        raise CommandError(f"{job_id} {job.state.lower()}: {job.message}" if job else f"{job_id} could not be watched")
    print(f"{job_id}: done, {job.settled_rows:,} rows in {job.output}, {job.error_rows:,} with an error")


def _job_logs(dashboard: str | None, config: Path | None) -> "JobLogs":
    from cluster.job_logs import JobLogs

    return JobLogs.connect(dashboard or _dashboard_here(config))


def _dashboard_here(config: Path | None) -> str:
    from cluster import state

    running = state.running(effective(config).state_folder)
    if running is None:
        raise CommandError("no cluster runs here; start one with `neox-serve up`, or name its Ray dashboard with --dashboard URL")
    return running.dashboard_url


def _object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--defaults") from error
    if not isinstance(values, dict):
        raise typer.BadParameter("must be a JSON object", param_hint="--defaults")
    return values
