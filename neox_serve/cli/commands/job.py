"""`neox-serve job`: batch jobs, through the gateway's BatchService."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from neox_serve.cli.connection import Connection, connected, interruptible
from neox_serve.cli.console import JsonOption, print_json, print_view
from neox_serve.cli.errors import CommandError
from neox_serve.core.jobs.evaluate import AS_TASKS_HAVE_IT, EVALUATE, EvaluateWork
from neox_serve.core.jobs.finetune import FINETUNE, TARGETS, FinetuneWork
from neox_serve.core.jobs.job import RowsWork, Work
from neox_serve.core.jobs.quantize import QUANTIZE, SCHEME_NAMES, QuantizeWork
from neox_serve.core.jobs.vector_target import ALLOWED, VectorTarget

if TYPE_CHECKING:
    from neox_serve.client import BatchJob, Client

job_app = typer.Typer(help="Run bulk work as batch jobs.", no_args_is_help=True)
submit_app = typer.Typer(help="Create a job, or find it running.", no_args_is_help=True)
job_app.add_typer(submit_app, name="submit")

IdArgument = Annotated[str, typer.Argument(metavar="ID")]
_WHERE = "A path or URL; with a credential, a name in the tenant's folder of the cluster."
_WHOSE = f"Parquet where it ends in .parquet. {_WHERE}"
_DEFAULTS, _QUANTIZED = FinetuneWork("", ""), QuantizeWork("", "", "", "")
_FOLLOW_EVERY_S = 1.0


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
        rejects: Annotated[str, typer.Option(metavar="FILE", help="Takes bad rows, which otherwise fail the job.")] = "",
        max_stall_s: Annotated[float, typer.Option("--max-stall", metavar="SECONDS", help="Fail without any progress.")] = 600.0,
        into: Annotated[
            str, typer.Option(metavar="TARGET", hidden=kind != "embed", help=f"Vector database that gets the vectors too: {ALLOWED}.")
        ] = "",
        own_engine: Annotated[
            bool, typer.Option("--own-engine", help="Start an engine for this job, beside those of the cluster; for operators.")
        ] = False,
        name: Annotated[str | None, typer.Option("--name", help="Its request id; absent: made of the work.")] = None,
    ) -> None:
        source, output, rejects = (_as_known_there(connection, file) for file in (source, output, rejects))
        into = _target_as_known_there(connection, into)
        work = RowsWork(source, output, _object(defaults), rejects, concurrency, max_stall_s, into, own_engine)
        if not connection.has_credential:
            connection.installation.check_rows(kind, work)
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
    rejects: Annotated[str, typer.Option(metavar="FILE", help="Takes bad rows, which otherwise fail the job.")] = "",
    name: Annotated[str | None, typer.Option("--name", help="Its request id; absent: made of the work.")] = None,
) -> None:
    """Train a LoRA adapter on examples; it is served once the job has succeeded."""
    source, rejects = (_as_known_there(connection, file) for file in (source, rejects))
    work = FinetuneWork(
        source,
        adapter,
        rejects,
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


@submit_app.command()
@connected
@interruptible
def quantize(  # noqa: PLR0913 - the command's options, one by one
    connection: Connection,
    *,
    scheme: Annotated[
        Literal["w8a8", "w4a16"], typer.Argument(metavar="|".join(SCHEME_NAMES), help="8 bits, inputs too; or 4 bits in groups of 128.")
    ],
    output: Annotated[str, typer.Argument(metavar="OUT", help="Folder that gets the checkpoint, which another cluster serves.")],
    calibration: Annotated[str, typer.Argument(metavar="TEXT", help=f"Text to round against, like what the model will read. {_WHERE}")],
    held_out: Annotated[str, typer.Argument(metavar="HELD_OUT", help="Other text, to measure on before and after.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Watch the job to its end.")] = False,
    sequences: Annotated[int, typer.Option(min=1, help="Taken of TEXT.")] = _QUANTIZED.sequences,
    sequence_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each.")] = _QUANTIZED.sequence_tokens,
    held_out_tokens: Annotated[int, typer.Option(min=2, help="Of HELD_OUT that are measured on, at most.")] = _QUANTIZED.held_out_tokens,
    serve_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens that an engine of each generates, to compare them; for operators; 0: no engine is started.")
    ] = _QUANTIZED.serve_tokens,
    name: Annotated[str | None, typer.Option("--name", help="Its request id; absent: made of the work.")] = None,
) -> None:
    """Make a checkpoint of the served model with fewer bits a weight."""
    output, calibration, held_out = (_as_known_there(connection, file) for file in (output, calibration, held_out))
    work = QuantizeWork(scheme, output, calibration, held_out, sequences, sequence_tokens, held_out_tokens, serve_tokens)
    options = {each: value for each, value in asdict(work).items() if each not in {"scheme", "output", "calibration", "held_out"}}
    with connection.client() as client:

        def create(request_id: str) -> "BatchJob":
            return client.create_quantization(scheme, output, calibration, held_out, request_id=request_id, **options)

        _submitted(client, name or _name(QUANTIZE, work), create, wait=wait)


@job_app.command(name="list")
@connected
def list_jobs(
    connection: Connection,
    most: Annotated[int, typer.Option("--most", min=1, max=1_000, help="Jobs shown.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Show the newest jobs."""
    from neox_serve.cli.views import job as job_view

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
@interruptible
def logs(
    connection: Connection,
    job_id: IdArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job's last run writes, as of a few seconds ago."""
    from neox_serve.cli.views.job import LogReader

    reader = LogReader()
    with connection.client() as client:
        while True:
            ended = client.job(job_id).state.ended
            log = client.job_log(job_id)
            print(reader.news(log), end="", flush=True)
            if ended or not follow:
                break
            time.sleep(_FOLLOW_EVERY_S)
    if not log.run_id:
        raise CommandError(f"{job_id} has not been run yet" if not ended else f"{job_id} has ended without a run")


def _as_known_there(connection: Connection, file: str) -> str:
    """Tenants name files in their folder; who needs no credential is on the cluster's own machine, with paths as they are here."""
    if not file or connection.has_credential or "://" in file:
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

    from neox_serve.cli.views import job as job_view

    job = job_view.follow(client.watch_job(job_id), Console(stderr=True, soft_wrap=True))
    if job is None or job.state != "SUCCEEDED":
        raise CommandError(f"{job_id} {job.state.lower()}: {job.message}" if job else f"{job_id} could not be watched")
    print(f"{job_id}: done, {job.completed_rows:,} {job_view.counted(job)} in {job.output}, {job.error_rows:,} with an error")


def _object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--defaults") from error
    if not isinstance(values, dict):
        raise typer.BadParameter("must be a JSON object", param_hint="--defaults")
    return values
