"""Batch jobs on the screen, and their logs over a scripted Job API."""

import io
from dataclasses import replace

from rich.console import Console

from neox_serve.cli.views.job import LogReader, follow, lines, table
from neox_serve.client import BatchJob, JobLog, JobState

JOB = BatchJob("job-1", "june", "generate", JobState.RUNNING, "in", "out", 100, 20, 1, 0, "", False, 1, "job-1-1", 1.0, 2.0, None)


def shown(*jobs: BatchJob, seconds: tuple[float, ...]) -> list[str]:
    said, times = io.StringIO(), iter(seconds)
    assert follow(jobs, Console(file=said, width=200), clock=lambda: next(times)) == jobs[-1]
    return said.getvalue().splitlines()


def test_job_is_followed_by_a_line_now_and_then_and_at_every_change_of_state() -> None:
    steps = [
        replace(JOB, state=JobState.QUEUED, total_rows=0, completed_rows=0, error_rows=0),
        JOB,
        replace(JOB, completed_rows=30),
        replace(JOB, completed_rows=60),
        replace(JOB, completed_rows=60, state=JobState.FAILED, message="no space left"),
    ]
    assert shown(*steps, seconds=(0.0, 10.0, 11.0, 20.0, 21.0)) == [
        "queued",
        "running, 20 of 100 rows, 1 with an error",
        "running, 60 of 100 rows, 4.0 rows/s, 10 s left, 1 with an error",
        "failed, 60 of 100 rows, 1 with an error: no space left",
    ]


def test_job_in_full_says_where_it_stands_and_whence_it_came() -> None:
    first, files, rows, created = lines(JOB, 12.0)
    assert (first, files) == ("job-1: running", "  generate: in -> out")
    assert rows == "  20 of 100 rows, 1 with an error; 10 s; run job-1-1"
    assert created.endswith("request_id june")
    waiting = lines(replace(JOB, state=JobState.QUEUED, total_rows=0, started_s=None, run_id=""), 12.0)
    assert waiting[2] == "  rows not yet counted; not started"


def test_table_has_a_row_for_each_job() -> None:
    said = io.StringIO()
    Console(file=said, width=200).print(table([JOB, replace(JOB, job_id="job-2", message="why")], 12.0))
    assert [line.split()[0] for line in said.getvalue().splitlines()] == ["job", "job-1", "job-2"]
    assert "20/100" in said.getvalue()
    assert "why" in said.getvalue()


def test_log_is_read_as_it_grows() -> None:
    reader = LogReader()
    assert reader.unread(JobLog("", 0, "")) == ""
    assert reader.unread(JobLog("one\n", 0, "job-1-1")) == "one\n"
    assert reader.unread(JobLog("one\ntwo\n", 0, "job-1-1")) == "two\n"
    assert reader.unread(JobLog("two\nthree\n", 4, "job-1-1")) == "three\n"
    assert reader.unread(JobLog("last\n", 1_000, "job-1-1")) == "[1,000 earlier characters are not shown]\nlast\n"
    assert reader.unread(JobLog("again\n", 0, "job-1-2")) == "again\n"
