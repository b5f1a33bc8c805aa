"""Batch jobs: the state that is kept of a job, and the decision what to do next for it.

A job is done by runs, one after the other. A run is a process that Ray starts. If a run dies, the next one continues from the rows that are
complete. If Ray has forgotten a run because the cluster was restarted, the same run is submitted again. A run that reports a failure ends
its job. `next_step` is the transition table.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from neox_serve.core.jobs.work import Work
from neox_serve.core.str_enum import StrEnum

MAX_RUNS_WITHOUT_PROGRESS = 5
"""A job fails after this many runs in a row that died without completing another row."""

MAX_LOG_CHARACTERS = 65_536
"""Number of characters that are kept from the end of a run's log."""


class JobState(StrEnum):
    """The state of a job. SUCCEEDED, FAILED and CANCELLED are final."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


class RunStatus(StrEnum):
    """The status of a run, as Ray names it. UNKNOWN means that Ray does not know the run."""

    UNKNOWN = "UNKNOWN"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. The unit of `total`, `done` and `errors` depends on the kind of work.

    Generating and embedding count rows, fine-tuning counts examples over all epochs, evaluation counts questions, and quantization counts
    matrices.
    """

    total: int = 0
    """Number of rows; 0 until they are counted."""
    done: int = 0
    """Number of complete rows, including those with an error."""
    errors: int = 0
    """Number of complete rows whose result is an error."""
    tokens: int = 0
    """Tokens that the current run used. If it generates text, only the generated ones."""
    prompt_tokens: int = 0
    """Prompt tokens that the current run used to generate text."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run reports about itself."""

    progress: Progress
    """How far the run is."""
    failure: str = ""
    """Why the run gave up; empty if it has not."""


NO_REPORT = Report(Progress())
"""The report of a run that has not written one."""


@dataclass(frozen=True, slots=True)
class JobLog:
    """The end of a run's log."""

    run_id: str
    """The run that wrote the log; empty if there is no log."""
    start: int
    """Number of characters that precede `text`."""
    text: str
    """The last MAX_LOG_CHARACTERS characters."""

    @classmethod
    def of(cls, run_id: str, log: str) -> "JobLog":
        """Returns the end of a complete log."""
        start = max(0, len(log) - MAX_LOG_CHARACTERS)
        return cls(run_id, start, log[start:])


NO_LOG = JobLog("", 0, "")
"""The log of a job without a run."""


@dataclass(frozen=True, slots=True)
class Job:
    """A batch job. Times are seconds since the epoch."""

    job_id: str
    """Unique id; ids sort by the time of creation."""
    tenant: str
    """Name of the tenant that the job belongs to."""
    kind: str
    """What the job does, such as "generate"; a key of WORK_TYPES."""
    work: Work
    """The options of the job."""
    created_s: float
    """When the job was created."""
    request_id: str = ""
    """Idempotency key of the call that created the job; empty if it had none."""
    state: JobState = JobState.QUEUED
    """The state of the job."""
    message: str = ""
    """Why the job waits, failed or was cancelled, for people; empty otherwise."""
    cancel_requested: bool = False
    """Whether the tenant asked to cancel the job."""
    progress: Progress = Progress()
    """How far the job is."""
    run_id: str = ""
    """The current or last run; empty before the first one."""
    runs: int = 0
    """Number of runs so far."""
    runs_without_progress: int = 0
    """Number of runs in a row, up to now, that died without completing another row."""
    rows_before_run: int = 0
    """Number of rows that were complete when the current run started."""
    key_id: str = ""
    """The API key that the job's runs use; empty if they use none."""
    started_s: float | None = None
    """When the first run started; None if it has not."""
    ended_s: float | None = None
    """When the job ended; None if it has not."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start the next run."""

    runs_without_progress: int = 0
    """Number of runs in a row before it that completed no row."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Submit the current run to Ray, which does not know it yet or has forgotten it."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the current run."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing; the run continues."""


@dataclass(frozen=True, slots=True)
class End:
    """End the job."""

    state: JobState
    """The final state."""
    message: str = ""
    """Why the job failed or was cancelled, for people."""


Step = Start | Submit | Stop | Wait | End
"""What to do next for a job."""


def next_step(job: Job, run: RunStatus, report: Report, status_message: str = "") -> Step:
    """Returns what to do next for a job that is RUNNING.

    `run` and `status_message` are the status of its current run according to Ray; `report` is what the run reported itself.
    """
    if run in {RunStatus.PENDING, RunStatus.RUNNING}:
        return Stop() if job.cancel_requested else Wait()
    if (end := _end(job, run, report)) is not None:
        return end
    if run is RunStatus.UNKNOWN:
        return Submit()
    stalled = job.runs_without_progress + 1 if report.progress.done <= job.rows_before_run else 1
    if stalled >= MAX_RUNS_WITHOUT_PROGRESS:
        return End(JobState.FAILED, f"{stalled} runs in a row died without completing a row: {status_message}")
    return Start(stalled)


def _end(job: Job, run: RunStatus, report: Report) -> End | None:
    """Returns how a job ends whose run does not exist any more; None if another run must follow."""
    if run is RunStatus.SUCCEEDED:
        return End(JobState.SUCCEEDED)
    if job.cancel_requested:
        return End(JobState.CANCELLED, "cancelled")
    if run is RunStatus.STOPPED:
        return End(JobState.CANCELLED, "its run was stopped in Ray")
    return End(JobState.FAILED, report.failure) if report.failure else None


def jobs_to_start(jobs: Sequence[Job], max_running_jobs: int) -> list[Job]:
    """Returns the queued jobs to start now, so that at most `max_running_jobs` run.

    Tenants with fewer running jobs come first; among jobs of such tenants, older jobs come first.
    """
    waiting = [job for job in jobs if job.state is JobState.QUEUED and not job.cancel_requested]
    running = Counter(job.tenant for job in jobs if job.state is JobState.RUNNING)
    chosen: list[Job] = []
    for _ in range(max_running_jobs - running.total()):
        if not waiting:
            break
        job = min(waiting, key=lambda one: (running[one.tenant], one.job_id))
        waiting.remove(job)
        running[job.tenant] += 1
        chosen.append(job)
    return chosen


def new_job_id(now_s: float, random_bits: int) -> str:
    """Returns a job id. Ids sort by `now_s`, in seconds since the epoch; of `random_bits`, 32 bits are used."""
    return f"job-{round(now_s * 1e6):014x}-{random_bits & 0xFFFF_FFFF:08x}"
