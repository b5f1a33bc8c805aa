"""Evaluates what a cluster serves on tasks of lm-evaluation-harness. See `python -m deployments.jobs.evaluate --help`.

If the run is interrupted at any point, the same command with the same --cache continues and does not repeat requests that were answered.
The output file, in the harness's own format, appears once all tasks are done.

Exit codes: 0 the results are written, 1 stopped by an error, 2 wrong arguments or tasks, 130 or 143 interrupted by a signal.
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

_RESULT_KEYS = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "configs", "samples")


def run(spec: EvaluateRun, console: Console) -> Mapping[str, Any]:
    """Does the run and returns the harness's results. Raises JobError."""
    work = spec.work
    manager = TaskManager("ERROR", include_path=spec.tasks_folder)
    if unknown := [task for task in work.tasks if task not in manager.all_tasks]:
        raise JobError(f"--tasks: there is no task {unknown[0]!r}; `lm-eval ls tasks` lists the tasks of the harness", 2)
    report = ReportFile(spec.report) if spec.report else None
    with JobProgress(console, 0, 0, report=report.record if report else None, noun="questions") as progress:
        model = ClusterModel(
            spec.access, adapter=work.adapter, concurrency=work.concurrency, max_stall_s=spec.max_stall_s, progress=progress
        )
        results = _evaluate(spec, manager, model)
    if report:
        report.flush()
    with usable(work.output), writing(work.output) as stream:
        stream.write(json.dumps({name: results[name] for name in _RESULT_KEYS if name in results}, indent=2, default=str).encode())
    return results


def _evaluate(spec: EvaluateRun, manager: TaskManager, model: ClusterModel) -> Mapping[str, Any]:
    """Returns the results of the tasks. Raises JobError."""
    work = spec.work
    try:
        found = simple_evaluate(
            model,
            tasks=list(work.tasks),
            num_fewshot=work.shots,
            limit=work.limit or None,
            use_cache=str(spec.cache) if spec.cache else None,
            task_manager=manager,
            verbosity="ERROR",
        )
    except JobError:
        raise
    except Exception as error:  # tasks are code, which can raise anything
        raise JobError(f"{', '.join(work.tasks)}: {type(error).__name__}: {error}", 1) from error
    return found or {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Does the run that the arguments describe, and returns the exit code."""
    spec, console = parse_arguments(arguments), Console(stderr=True, soft_wrap=True)
    raise_on_signals()
    try:
        results = run(spec, console)
    except JobError as error:
        if spec.report:
            ReportFile(spec.report).record_failure(str(error))
        console.print(f"Error: {error}", markup=False, highlight=False)
        return error.exit_code
    except InterruptedBySignal as signalled:
        hint = "The same command continues from there." if spec.cache else "Without --cache, the same command starts again."
        console.print(f"Stopped. {hint}", markup=False, highlight=False)
        return signalled.exit_code
    console.print(make_table(results), markup=False, highlight=False)
    console.print(f"Done: results of {len(spec.work.tasks)} tasks in {spec.work.output}.", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
