"""The command line of an evaluation job. Without the harness: who only starts a job need not wait for it."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from deployments.jobs import access
from deployments.jobs.access import Access
from neox_serve.core.jobs.evaluate import EvaluateWork


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """What to do. tasks_folder: with tasks beside those that the harness brings. cache: file in which answers are kept, for the next run.

    max_stall_s: without an answer, until it gives up. report: file in which it says how far it is; None where nobody asks.
    """

    work: EvaluateWork
    access: Access
    tasks_folder: Path | None = None
    cache: Path | None = None
    max_stall_s: float = 600.0
    report: Path | None = None


def parse_arguments(arguments: Sequence[str] | None = None) -> EvaluateJob:
    """The job that the arguments describe; wrong ones exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m deployments.jobs.evaluate", description="Evaluates what a cluster serves.")
    parser.add_argument("--tasks", required=True, type=lambda text: tuple(text.split(",")), help="names, separated by commas")
    parser.add_argument("--output", required=True, help="JSON file that gets the results")
    parser.add_argument("--adapter", default="", help="LoRA adapter; absent: the model itself")
    parser.add_argument("--shots", type=int, default=-1, help="examples in each prompt; absent: as each task has it")
    parser.add_argument("--limit", type=int, default=0, help="questions of each task; absent: all")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight")
    parser.add_argument("--max-stall", type=float, default=600.0, dest="max_stall_s", help="seconds without an answer before giving up")
    parser.add_argument("--tasks-folder", type=Path, help="with tasks beside the harness's own; what they hold is run as code")
    parser.add_argument("--cache", type=Path, help="file of answers; the same command goes on from there")
    parser.add_argument("--report", type=Path, help="file that says how far the job is, and why it gave up")
    access.add_arguments(parser)
    values = vars(parser.parse_args(arguments))
    work = EvaluateWork(**{field.name: values.pop(field.name) for field in fields(EvaluateWork)})
    for name, value, allowed in work.problems():
        parser.error(f"argument --{name}: got {value!r}, must be {allowed}")
    return EvaluateJob(work, access.taken(values), **values)


def arguments_of(job: EvaluateJob) -> list[str]:
    """The arguments that describe the job, from which `parse_arguments` makes it again."""
    work = job.work
    arguments = ["--tasks", ",".join(work.tasks), "--output", work.output, *job.access.arguments()]
    arguments += ["--adapter", work.adapter] if work.adapter else []
    arguments += ["--shots", str(work.shots)] if work.shots >= 0 else []
    arguments += ["--limit", str(work.limit)] if work.limit else []
    arguments += ["--concurrency", str(work.concurrency), "--max-stall", str(job.max_stall_s)]
    arguments += ["--tasks-folder", str(job.tasks_folder)] if job.tasks_folder else []
    arguments += ["--cache", str(job.cache)] if job.cache else []
    arguments += ["--report", str(job.report)] if job.report else []
    return arguments


def entrypoint_of(job: EvaluateJob) -> str:
    """The command line that does the job, with this interpreter."""
    return shlex.join([sys.executable, "-m", "deployments.jobs.evaluate", *arguments_of(job)])
