"""`neox-serve job`: batch jobs, through the gateway's BatchService."""

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neox_serve.cli.connection import Connection, connected, interruptible
from neox_serve.cli.console import JsonOption, print_json, print_view
from neox_serve.cli.errors import CommandError
from neox_serve.cli.work_parameters import build_work, work_parameters
from neox_serve.core.jobs.evaluate import EVALUATE
from neox_serve.core.jobs.finetune import FINETUNE
from neox_serve.core.jobs.options import required_fields, with_file_names
from neox_serve.core.jobs.quantize import QUANTIZE
from neox_serve.core.jobs.rows import EMBED, GENERATE, RowsWork
from neox_serve.core.jobs.work import WORK_TYPES, Work

if TYPE_CHECKING:
    from neox_serve.client import BatchJob, Client

job_app = typer.Typer(help="Run bulk work as batch jobs.", no_args_is_help=True)
submit_app = typer.Typer(help="Create a job, or find the job that was created for the same work.", no_args_is_help=True)
job_app.add_typer(submit_app, name="submit")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Watch the job until it ends.")]
NameOption = Annotated[
    str | None,
    typer.Option("--name", help="Idempotency key of the job. Without it, the key is derived from the work."),
]
_FOLLOW_INTERVAL_S = 1.0

_HELP: Mapping[str, str] = {
    GENERATE: 'Complete every row of a file. A row is {"prompt": ..., optional "id", "max_tokens", ...}.',
    EMBED: 'Turn every row of a file into a vector. A row is {"text": ..., optional "id", "pooling", ...}.',
    FINETUNE: "Train a LoRA adapter on examples. It is served once the job has succeeded.",
    EVALUATE: "Evaluate what is served on tasks of lm-evaluation-harness.",
    QUANTIZE: "Quantize the served model's checkpoint.",
}


def _submission(kind: str) -> Callable[..., None]:
    """Returns the command that submits one kind of work. Its parameters are generated from the fields of the work."""
    work_type = WORK_TYPES[kind]

    def submit(connection: Connection, /, *, wait: bool, name: str | None, **values: Any) -> None:
        work = _located(connection, build_work(work_type, values))
        if isinstance(work, RowsWork) and not connection.has_credential:
            connection.installation.check_rows(kind, work)
        with connection.client() as client:
            _submit(client, kind, work, name or _name(kind, work), wait=wait)

    parameters = [
        inspect.Parameter("connection", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Connection),
        *work_parameters(work_type),
        inspect.Parameter("wait", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=WaitOption),
        inspect.Parameter("name", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=NameOption),
    ]
    submit.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return connected(interruptible(submit))


for _kind in WORK_TYPES:
    submit_app.command(name=_kind, help=_HELP[_kind])(_submission(_kind))


@job_app.command(name="list")
@connected
def list_jobs(
    connection: Connection,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Maximum number of jobs to show.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show the newest jobs."""
    from neox_serve.cli.views import job as job_view

    with connection.client() as client:
        jobs = client.jobs(page_size=limit).jobs
    if as_json:
        print_json(list(jobs))
        return
    print_view(job_view.table(jobs, time.time()))


@job_app.command()
@connected
def status(connection: Connection, job_id: IdArgument, as_json: JsonOption = False) -> None:
    """Show one job."""
    from neox_serve.cli.views import job as job_view

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
    """Watch a job until it ends. Ctrl-C stops watching; the job continues."""
    with connection.client() as client:
        _watch(client, job_id)


@job_app.command()
@connected
def cancel(connection: Connection, job_id: IdArgument) -> None:
    """Cancel a job and remove its unfinished output."""
    with connection.client() as client:
        job = client.cancel_job(job_id)
    print(f"{job.job_id}: {'is being cancelled' if job.cancel_requested and not job.state.ended else job.state.lower()}")


@job_app.command()
@connected
@interruptible
def logs(
    connection: Connection,
    job_id: IdArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job ends.")] = False,
) -> None:
    """Print the log of a job's last run. The log is a few seconds behind."""
    from neox_serve.cli.views.job import LogReader

    reader = LogReader()
    with connection.client() as client:
        while True:
            ended = client.job(job_id).state.ended
            log = client.job_log(job_id)
            print(reader.unread(log), end="", flush=True)
            if ended or not follow:
                break
            time.sleep(_FOLLOW_INTERVAL_S)
    if not log.run_id:
        raise CommandError(f"{job_id} has not been run yet" if not ended else f"{job_id} has ended without a run")


def _located(connection: Connection, work: Work) -> Work:
    """Makes file names absolute if the caller presents no credential, since the cluster is then on this machine.

    Tenants name files in their folder of the cluster instead, so their names stay as they are.
    """
    if connection.has_credential:
        return work
    try:
        return with_file_names(work, lambda file: file if "://" in file else str(Path(file).absolute()))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--into") from error


def _name(kind: str, work: Work) -> str:
    """Returns an idempotency key for the work: the same work has the same key."""
    return f"{kind}-{hashlib.sha256(json.dumps(asdict(work), sort_keys=True).encode()).hexdigest()[:12]}"


def _submit(client: "Client", kind: str, work: Work, name: str, *, wait: bool) -> None:
    """Creates the job with that name. If it has ended, creates the next one, which repeats nothing that is complete."""
    attempts = count(2)
    job = _create(client, kind, work, name)
    while job.state.ended:
        job = _create(client, kind, work, f"{name}-{next(attempts)}")
    state = "runs already" if job.run_id else "created"
    print(f"{job.job_id}: {state}\n  neox-serve job status {job.job_id}\n  neox-serve job watch {job.job_id}", flush=True)
    if wait:
        _watch(client, job.job_id)


def _create(client: "Client", kind: str, work: Work, request_id: str) -> "BatchJob":
    """Calls the client's method for the kind of work."""
    required = required_fields(type(work))
    named = [getattr(work, name) for name in type(work).__dataclass_fields__ if name in required]
    options = {name: getattr(work, name) for name in type(work).__dataclass_fields__ if name not in required}
    methods: dict[str, Any] = {
        FINETUNE: client.create_finetune,
        EVALUATE: client.create_evaluation,
        QUANTIZE: client.create_quantization,
    }
    method = methods.get(kind, client.create_job)
    job: BatchJob = method(*([kind] if isinstance(work, RowsWork) else []), *named, request_id=request_id, **options)
    return job


def _watch(client: "Client", job_id: str) -> None:
    from rich.console import Console

    from neox_serve.cli.views import job as job_view

    job = job_view.follow(client.watch_job(job_id), Console(stderr=True, soft_wrap=True))
    if job is None or job.state != "SUCCEEDED":
        raise CommandError(f"{job_id} {job.state.lower()}: {job.message}" if job else f"{job_id} could not be watched")
    print(f"{job_id}: done, {job.completed_rows:,} {job_view.counted(job)} in {job.output}, {job.error_rows:,} with an error")
