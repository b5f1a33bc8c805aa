"""Jobs over a scripted Job API: the same job is found, not started twice; an ended one is started again."""

import shlex
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs import Jobs, JobsError, name_of
from deployments.jobs.bulk import BulkJob, arguments_of, parse_arguments
from neox_serve.client import Tls


@dataclass
class Details:
    """As Ray's JobDetails, as far as it is read."""

    submission_id: str | None
    status: str
    metadata: dict[str, str] | None
    entrypoint: str = ""
    message: str = ""
    start_time: int | None = 1_000
    end_time: int | None = None


@dataclass
class ScriptedJobClient:
    """Ray's Job API in memory. ends_as: what a job becomes when its log is followed or it is stopped."""

    jobs: dict[str, Details] = field(default_factory=dict)
    ends_as: str = "SUCCEEDED"
    runtime_envs: list[Any] = field(default_factory=list)

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> str:
        if submission_id in self.jobs:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        self.jobs[submission_id] = Details(submission_id, "RUNNING", metadata, entrypoint)
        self.runtime_envs.append(runtime_env)
        return submission_id

    def list_jobs(self) -> list[Any]:
        return [*self.jobs.values(), Details(None, "RUNNING", None), Details("foreign", "RUNNING", {"other": "1"})]

    def stop_job(self, job_id: str) -> bool:
        self.jobs[job_id].status = "STOPPED"
        return True

    def get_job_logs(self, job_id: str) -> str:
        return f"log of {job_id}\n"

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for text in ("one\n", "two\n"):
            yield text
        self.jobs[job_id].status = self.ends_as


JOB = BulkJob("generate", Path("/data/in put.jsonl"), Path("/data/out.jsonl"), "127.0.0.1:50051", "generate-1", defaults={"max_tokens": 3})


def test_submit_runs_the_same_interpreter_and_uploads_nothing() -> None:
    client = ScriptedJobClient()
    assert not Jobs(client).submit(JOB).already_running
    words = shlex.split(client.jobs["generate-1-1"].entrypoint)
    assert words[:3] == [sys.executable, "-m", "deployments.jobs.bulk"]
    assert parse_arguments(words[3:]) == JOB
    assert client.runtime_envs == [{}]


def test_submit_while_it_runs_finds_it() -> None:
    jobs = Jobs(ScriptedJobClient())
    first = jobs.submit(JOB)
    second = jobs.submit(JOB)
    assert (second.id, second.already_running) == (first.id, True)


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_submit_after_its_end_starts_another_run_of_the_same_job(status: str) -> None:
    client = ScriptedJobClient()
    jobs = Jobs(client)
    first = jobs.submit(JOB)
    client.jobs[first.id].status = status
    second = jobs.submit(JOB)
    assert not second.already_running
    assert [(info.id, info.name) for info in jobs.list()] == [(first.id, "generate-1"), (second.id, "generate-1")]
    assert client.jobs[first.id].entrypoint == client.jobs[second.id].entrypoint


def test_list_shows_our_jobs_alone() -> None:
    jobs = Jobs(ScriptedJobClient())
    jobs.submit(JOB)
    assert [(info.id, info.kind, info.ended) for info in jobs.list()] == [("generate-1-1", "generate", False)]


def test_follow_writes_the_log_and_returns_at_the_end() -> None:
    client = ScriptedJobClient(ends_as="FAILED")
    jobs = Jobs(client)
    jobs.submit(JOB)
    written: list[str] = []
    assert jobs.follow("generate-1-1", written.append).status == "FAILED"
    assert written == ["one\n", "two\n"]


def test_stop_asks_and_waits_and_does_not_mind_one_that_has_ended() -> None:
    jobs = Jobs(ScriptedJobClient())
    jobs.submit(JOB)
    assert [jobs.stop("generate-1-1", timeout_s=1.0).status for _ in range(2)] == ["STOPPED", "STOPPED"]


def test_wait_for_a_job_that_does_not_end_times_out() -> None:
    jobs = Jobs(ScriptedJobClient())
    jobs.submit(JOB)
    with pytest.raises(TimeoutError, match="still running"):
        jobs.wait("generate-1-1", timeout_s=-1.0)


def test_unknown_job_is_an_error_that_says_where_to_look() -> None:
    for ask in (Jobs(ScriptedJobClient()).info, Jobs(ScriptedJobClient()).logs):
        with pytest.raises(JobsError, match="no job nothing; `neox-serve job list`"):
            ask("nothing")


def test_error_of_rays_client_is_translated() -> None:
    client = ScriptedJobClient()
    client.list_jobs = lambda: (_ for _ in ()).throw(ConnectionError("refused"))  # type: ignore[method-assign]
    with pytest.raises(JobsError, match="refused"):
        Jobs(client).list()


def test_arguments_describe_the_whole_job() -> None:
    tls = Tls(Path("/tls/ca.pem"), Path("/tls/certificate.pem"), Path("/tls/key.pem"))
    whole = BulkJob(
        "generate",
        Path("/i"),
        Path("/o"),
        "h:1",
        "j",
        concurrency=3,
        defaults={"stop": ["\n"]},
        set_aside=Path("/b"),
        patience_s=1.5,
        tls=tls,
        api_key_file=Path("/k"),
    )
    for job in (JOB, whole, BulkJob("generate", Path("/i"), Path("/o"), "h:1", "j", tls=Tls())):
        assert parse_arguments(arguments_of(job)) == job


def test_job_id_depends_on_all_that_the_job_does() -> None:
    assert name_of("generate", "a", "b") == name_of("generate", "a", "b")
    assert len({name_of("generate", "a", "b"), name_of("generate", "ab"), name_of("generate", "a", "c")}) == 3
