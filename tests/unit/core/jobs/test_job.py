"""The next step of a batch job, and the choice of the jobs to start."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.jobs.job import (
    MAX_RUNS_WITHOUT_PROGRESS,
    NO_REPORT,
    End,
    Job,
    JobState,
    Progress,
    Report,
    RunStatus,
    Start,
    Step,
    Stop,
    Submit,
    Wait,
    jobs_to_start,
    new_job_id,
    next_step,
)
from neox_serve.core.jobs.rows import RowsWork

WORK = RowsWork("in", "out")
JOB = Job("job-1", "acme", "generate", WORK, 0.0, state=JobState.RUNNING, run_id="job-1-1", runs=1)
CANCELLED = replace(JOB, cancel_requested=True)
GAVE_UP = Report(Progress(10, 4), "in.jsonl: line 3 is not JSON")
ENDED = [RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.STOPPED, RunStatus.UNKNOWN]


@pytest.mark.parametrize(
    ("job", "run", "report", "step"),
    [
        (JOB, RunStatus.PENDING, NO_REPORT, Wait()),
        (JOB, RunStatus.RUNNING, NO_REPORT, Wait()),
        (JOB, RunStatus.SUCCEEDED, NO_REPORT, End(JobState.SUCCEEDED)),
        (JOB, RunStatus.FAILED, GAVE_UP, End(JobState.FAILED, GAVE_UP.failure)),
        (JOB, RunStatus.FAILED, NO_REPORT, Start(1)),
        (JOB, RunStatus.FAILED, Report(Progress(10, 4)), Start(1)),
        (JOB, RunStatus.UNKNOWN, Report(Progress(10, 4)), Submit()),
        (JOB, RunStatus.STOPPED, NO_REPORT, End(JobState.CANCELLED, "its run was stopped in Ray")),
        (CANCELLED, RunStatus.RUNNING, NO_REPORT, Stop()),
        (CANCELLED, RunStatus.STOPPED, NO_REPORT, End(JobState.CANCELLED, "cancelled")),
        (CANCELLED, RunStatus.UNKNOWN, NO_REPORT, End(JobState.CANCELLED, "cancelled")),
        (CANCELLED, RunStatus.FAILED, GAVE_UP, End(JobState.CANCELLED, "cancelled")),
        (CANCELLED, RunStatus.SUCCEEDED, NO_REPORT, End(JobState.SUCCEEDED)),
    ],
)
def test_next_step_follows_from_the_status_and_the_report(job: Job, run: RunStatus, report: Report, step: Step) -> None:
    assert next_step(job, run, report) == step


def test_runs_without_progress_fail_the_job_and_progress_resets_the_count() -> None:
    job, last = replace(JOB, runs_without_progress=MAX_RUNS_WITHOUT_PROGRESS - 1, rows_before_run=7), Report(Progress(10, 7))
    assert next_step(job, RunStatus.FAILED, last, "killed") == End(
        JobState.FAILED, f"{MAX_RUNS_WITHOUT_PROGRESS} runs in a row died without completing a row: killed"
    )
    assert next_step(job, RunStatus.FAILED, Report(Progress(10, 8))) == Start(1)


@given(st.sampled_from(ENDED), st.booleans(), st.integers(0, 9), st.text(max_size=3))
def test_job_without_a_live_run_continues_or_ends(run: RunStatus, cancel_requested: bool, done: int, failure: str) -> None:
    step = next_step(replace(JOB, cancel_requested=cancel_requested), run, Report(Progress(10, done), failure))
    assert isinstance(step, Start | Submit | End)
    assert not (cancel_requested and not isinstance(step, End))


tenants = st.sampled_from(["a", "b", "c"])
states = st.sampled_from([JobState.QUEUED, JobState.RUNNING])


@given(st.lists(st.tuples(tenants, states), max_size=12), st.integers(1, 6))
def test_jobs_to_start_fill_the_free_slots_fairly(given_jobs: list[tuple[str, JobState]], most: int) -> None:
    jobs = [Job(f"job-{number:02}", tenant, "generate", WORK, 0.0, state=state) for number, (tenant, state) in enumerate(given_jobs)]
    queued = [job for job in jobs if job.state is JobState.QUEUED]
    chosen = jobs_to_start(jobs, most)
    assert len(chosen) == max(0, min(len(queued), most - (len(jobs) - len(queued))))
    assert len({job.job_id for job in chosen}) == len(chosen)
    runs = {name: sum(job.tenant == name for job in jobs if job.state is JobState.RUNNING) for name in "abc"}
    started = {name: sum(job.tenant == name for job in chosen) for name in "abc"}
    for waiting in {job.tenant for job in queued if job not in chosen}:
        assert all(started[name] == 0 or runs[name] + started[name] <= runs[waiting] + started[waiting] + 1 for name in "abc")


def test_jobs_to_start_are_the_oldest_and_never_cancelled() -> None:
    old, young = (Job(new_job_id(at_s, 0), "a", "generate", WORK, at_s) for at_s in (1.0, 2.0))
    assert jobs_to_start([young, old], 1) == [old]
    assert jobs_to_start([young, replace(old, cancel_requested=True)], 1) == [young]
