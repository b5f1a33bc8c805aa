"""Batch jobs: what is kept of one, and what to do next for it, given what its run has come to.

A job is done by runs, one after the other: processes that Ray starts. A run that dies is followed by another, which goes on from what is
settled; one that Ray has forgotten, because the cluster was restarted, is started again. A run that says why it gives up ends its job.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neox_serve.core.jobs.evaluate import EVALUATE, EvaluateWork
from neox_serve.core.jobs.finetune import FINETUNE, FinetuneWork
from neox_serve.core.jobs.quantize import QUANTIZE, QuantizeWork
from neox_serve.core.str_enum import StrEnum

MAX_RUNS_WITHOUT_PROGRESS = 5
"""Runs in a row that die without settling a row more, until the job is given up."""


MAX_LOG_CHARACTERS = 65_536
"""That are kept of what a run has written."""


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether it stays so."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


class RunStatus(StrEnum):
    """What has become of a run, in Ray's words. UNKNOWN: Ray knows of no such run."""

    UNKNOWN = "UNKNOWN"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Progress:
    """total: rows, 0 until they are counted; of a training examples of all epochs, of an evaluation questions, of quantising
    matrices. errors: of the done ones.

    tokens: that this took; of completions those that were generated, and prompt_tokens those that were read for them.
    """

    total: int = 0
    done: int = 0
    errors: int = 0
    tokens: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a run says of itself. failure: why it gave up; empty where it has not."""

    progress: Progress
    failure: str = ""


NO_REPORT = Report(Progress())


@dataclass(frozen=True, slots=True)
class JobLog:
    """The end of what a run has written. start: characters before it."""

    run_id: str
    start: int
    text: str

    @classmethod
    def of(cls, run_id: str, whole: str) -> "JobLog":
        """Of all that it has written."""
        start = max(0, len(whole) - MAX_LOG_CHARACTERS)
        return cls(run_id, start, whole[start:])


NO_LOG = JobLog("", 0, "")


@dataclass(frozen=True, slots=True)
class RowsWork:
    """A request for each row of a file, as its creator says it. Files are named in the tenant's folder, or absolutely by an operator.

    options: of rows that do not set them. rejects, into: empty where bad rows fail the job, and no vector database gets the vectors.
    own_engine: the job starts engines for itself, and is no traffic of the cluster.
    """

    input: str
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rejects: str = ""
    concurrency: int = 32
    max_stall_s: float = 600.0
    into: str = ""
    own_engine: bool = False


Work = RowsWork | FinetuneWork | EvaluateWork | QuantizeWork
_OF_KIND: Mapping[str, type[FinetuneWork | EvaluateWork | QuantizeWork]] = {
    FINETUNE: FinetuneWork,
    EVALUATE: EvaluateWork,
    QUANTIZE: QuantizeWork,
}
"""The others are of rows."""


def makes_calls(work: Work) -> bool:
    """Whether such a job calls the cluster, as its tenant."""
    return isinstance(work, EvaluateWork) or (isinstance(work, RowsWork) and not work.own_engine)


def work_of(kind: str, values: Mapping[str, Any]) -> Work:
    """From what `asdict` made of a job's work, and JSON of that."""
    of_kind = _OF_KIND.get(kind)
    return of_kind.from_values(values) if of_kind else RowsWork(**values)


@dataclass(frozen=True, slots=True)
class Job:
    """One job. kind: what it does, such as "generate". Times are seconds since the epoch, None: not yet.

    run_id: of its last run, empty before the first. runs: so far. runs_without_progress: of those, the last ones that came no further.
    rows_before_run: that were settled when the last one began. key_id: the API key that its runs show, empty where they show none.
    """

    job_id: str
    tenant: str
    kind: str
    work: Work
    created_s: float
    request_id: str = ""
    state: JobState = JobState.QUEUED
    message: str = ""
    cancel_requested: bool = False
    progress: Progress = Progress()
    run_id: str = ""
    runs: int = 0
    runs_without_progress: int = 0
    rows_before_run: int = 0
    key_id: str = ""
    started_s: float | None = None
    ended_s: float | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A further run is to be started. fruitless: runs before it that came no further."""

    fruitless: int = 0


@dataclass(frozen=True, slots=True)
class Submit:
    """The run is to be given to Ray, which does not know it: not yet, or not any more."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The run is to be stopped."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The run goes on."""


@dataclass(frozen=True, slots=True)
class End:
    """The job is over."""

    state: JobState
    message: str = ""


Step = Start | Submit | Stop | Wait | End


def next_step(job: Job, run: RunStatus, report: Report, why: str = "") -> Step:
    """What to do for a job that has not ended. why: Ray's words on the run, for people."""
    if run in {RunStatus.PENDING, RunStatus.RUNNING}:
        return Stop() if job.cancel_requested else Wait()
    if (end := _end(job, run, report)) is not None:
        return end
    if run is RunStatus.UNKNOWN:
        return Submit()
    fruitless = job.runs_without_progress + 1 if report.progress.done <= job.rows_before_run else 1
    if fruitless >= MAX_RUNS_WITHOUT_PROGRESS:
        return End(JobState.FAILED, f"{fruitless} runs in a row died without settling a row: {why}")
    return Start(fruitless)


def _end(job: Job, run: RunStatus, report: Report) -> End | None:
    """Of a job whose run has ended; None where another run is to follow."""
    if run is RunStatus.SUCCEEDED:
        return End(JobState.SUCCEEDED)
    if job.cancel_requested:
        return End(JobState.CANCELLED, "cancelled")
    if run is RunStatus.STOPPED:
        return End(JobState.CANCELLED, "its run was stopped in Ray")
    return End(JobState.FAILED, report.failure) if report.failure else None


def to_start(jobs: Sequence[Job], most: int) -> list[Job]:
    """The queued jobs to start now, so that at most so many run: first those of the tenants with the fewest that run, then the oldest."""
    waiting = [job for job in jobs if job.state is JobState.QUEUED and not job.cancel_requested]
    running = Counter(job.tenant for job in jobs if job.state is JobState.RUNNING)
    chosen: list[Job] = []
    for _ in range(most - running.total()):
        if not waiting:
            break
        job = min(waiting, key=lambda one: (running[one.tenant], one.job_id))
        waiting.remove(job)
        running[job.tenant] += 1
        chosen.append(job)
    return chosen


def new_job_id(now_s: float, noise: int) -> str:
    """Ids sort as jobs were created. noise: 32 random bits."""
    return f"job-{round(now_s * 1e6):014x}-{noise & 0xFFFF_FFFF:08x}"
