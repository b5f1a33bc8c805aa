"""Evaluates what a cluster serves on tasks of lm-evaluation-harness. `python -m deployments.jobs.evaluate --help`.

Stopped at any point, the same command with the same --cache goes on: what has been answered is not asked again. The results are in the
output once all tasks are done, in the harness's own form.

Exit codes: 0 the results are there, 1 stopped by an error, 2 wrong arguments or tasks, 130 or 143 interrupted.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table
from rich.console import Console

from deployments.jobs.evaluate.cluster_model import ClusterModel
from deployments.jobs.evaluate.run import EvaluateRun, parse_arguments
from deployments.jobs.failures import InterruptedBySignal, JobError, raise_on_signals, usable
from deployments.jobs.files.storage import writing
from deployments.jobs.progress import JobProgress
from deployments.jobs.reports import ReportFile

_KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "configs", "samples")


def run(job: EvaluateRun, console: Console) -> Mapping[str, Any]:
    """Does the job; returns the harness's results. Raises JobError."""
    work = job.work
    manager = TaskManager("ERROR", include_path=job.tasks_folder)
    if unknown := [task for task in work.tasks if task not in manager.all_tasks]:
        raise JobError(f"--tasks: there is no task {unknown[0]!r}; `lm-eval ls tasks` lists those of the harness", 2)
    report = ReportFile(job.report) if job.report else None
    with JobProgress(console, 0, 0, report=report.record if report else None, noun="questions") as progress:
        model = ClusterModel(job.access, adapter=work.adapter, concurrency=work.concurrency, max_stall_s=job.max_stall_s, progress=progress)
        results = _evaluated(job, manager, model)
    if report:
        report.flush()
    with usable(work.output), writing(work.output) as stream:
        stream.write(json.dumps({name: results[name] for name in _KEPT if name in results}, indent=2, default=str).encode())
    return results


def _evaluated(job: EvaluateRun, manager: TaskManager, model: ClusterModel) -> Mapping[str, Any]:
    """Raises JobError."""
    work = job.work
    try:
        found = simple_evaluate(
            model,
            tasks=list(work.tasks),
            num_fewshot=work.shots,
            limit=work.limit or None,
            use_cache=str(job.cache) if job.cache else None,
            task_manager=manager,
            verbosity="ERROR",
        )
    except JobError:
        raise
    except Exception as error:  # tasks are code: they raise what they like
        raise JobError(f"{', '.join(work.tasks)}: {type(error).__name__}: {error}", 1) from error
    return found or {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; returns the exit code."""
    job, console = parse_arguments(arguments), Console(stderr=True, soft_wrap=True)
    raise_on_signals()
    try:
        results = run(job, console)
    except JobError as error:
        if job.report:
            ReportFile(job.report).record_failure(str(error))
        console.print(f"Error: {error}", markup=False, highlight=False)
        return error.exit_code
    except InterruptedBySignal as signalled:
        where = "The same command goes on from there." if job.cache else "Without --cache the same command begins anew."
        console.print(f"Stopped. {where}", markup=False, highlight=False)
        return signalled.exit_code
    console.print(make_table(results), markup=False, highlight=False)
    console.print(f"Done: results of {len(job.work.tasks)} tasks in {job.work.output}.", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
