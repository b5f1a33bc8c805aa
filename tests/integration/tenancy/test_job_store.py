"""Batch jobs in real databases: SQLite and PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, text

from neox_serve import tenancy
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.jobs.evaluate import EvaluateWork
from neox_serve.core.jobs.job import JobState, Progress
from neox_serve.core.jobs.rows import RowsWork
from neox_serve.tenancy.database import open_database
from neox_serve.tenancy.job_store import JobStore

_OLD_VALUES = "'QUEUED', '', 0, 0, 0, 0, 0, '', 0, 3, 0, '', 1.0"
WORK = RowsWork("in.jsonl", "out.jsonl", {"logit_bias": {"5": 1.5}}, into="lancedb:vectors#words")


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    opened = open_database(database_url)
    yield opened
    opened.dispose()


@pytest.fixture
def store(database: Engine) -> JobStore:
    times, noise = count(1000), count()
    return JobStore(database, clock=lambda: float(next(times)), random_bits=lambda _: next(noise))


def refused(reason: Reason, call: object) -> ServeError:
    with pytest.raises(ServeError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.reason is reason
    return caught.value


def test_job_is_read_as_it_was_written(store: JobStore) -> None:
    job = store.create("acme", "generate", WORK, "once")
    assert store.job("acme", job.job_id) == job
    ran = replace(job, state=JobState.RUNNING, progress=Progress(10, 4, 1, 99), run_id="run", runs=2, runs_without_progress=1, key_id="k")
    store.update(replace(ran, started_s=5.0, message="x" * 5_000))
    assert store.job("acme", job.job_id) == replace(ran, started_s=5.0, message="x" * 4_000)
    assert store.open_jobs() == [store.job("acme", job.job_id)]
    store.update(replace(ran, state=JobState.SUCCEEDED, ended_s=7.0))
    assert store.open_jobs() == []


def test_concurrent_repeats_of_a_request_id_create_one_job(database: Engine) -> None:
    store = JobStore(database)
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: store.create("acme", "generate", WORK, "once"), range(16)))
    assert len({job.job_id for job in made}) == 1
    assert store.create("other", "generate", WORK, "once").job_id != made[0].job_id
    error = refused(Reason.INVALID_ARGUMENT, lambda: store.create("acme", "embed", WORK, "once"))
    assert [violation.field for violation in error.violations] == ["request_id"]
    assert made[0].job_id in error.message


def test_jobs_without_a_request_id_are_distinct(store: JobStore) -> None:
    assert len({store.create("acme", "generate", WORK).job_id for _ in range(3)}) == 3


def test_queue_message_is_not_written_once_the_job_has_started(store: JobStore) -> None:
    job = store.create("acme", "generate", WORK)
    store.update_queue_message(job, "it waits")
    assert store.job("acme", job.job_id) == replace(job, message="it waits")
    started = replace(job, state=JobState.RUNNING, runs=1, run_id=f"{job.job_id}-1")
    assert store.claim_run(started)
    store.update_queue_message(job, "it still waits")
    assert store.job("acme", job.job_id) == started


def test_tenant_only_sees_and_cancels_its_own_jobs(store: JobStore) -> None:
    mine, other = store.create("acme", "generate", WORK), store.create("other", "generate", WORK)
    assert store.page("acme", 10) == [mine]
    refused(Reason.UNKNOWN_JOB, lambda: store.job("acme", other.job_id))
    refused(Reason.UNKNOWN_JOB, lambda: store.request_cancel("acme", other.job_id))
    assert not store.job("other", other.job_id).cancel_requested


def test_pages_contain_every_job_once_newest_first(store: JobStore) -> None:
    made = [store.create("acme", "generate", WORK).job_id for _ in range(7)]
    seen: list[str] = []
    while page := store.page("acme", 3, seen[-1] if seen else ""):
        seen += [job.job_id for job in page]
    assert seen == made[::-1]


def test_requested_cancellation_survives_updates_of_progress(store: JobStore) -> None:
    job = store.create("acme", "generate", WORK)
    assert store.request_cancel("acme", job.job_id).cancel_requested
    store.update(replace(job, progress=Progress(10, 1)))
    assert store.job("acme", job.job_id).cancel_requested
    store.update(replace(job, state=JobState.SUCCEEDED, ended_s=1.0))
    done = store.create("acme", "generate", WORK)
    store.update(replace(done, state=JobState.SUCCEEDED))
    assert not store.request_cancel("acme", done.job_id).cancel_requested


def test_job_of_an_older_database_is_converted_to_a_document(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/neox.db"
    older = create_engine(url)
    with older.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(tenancy.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        columns = "job_id, tenant, kind, work, state, message, cancel_asked, total, done, errors, tokens, run_id, runs, fruitless_runs"
        work = '{"input": "in", "output": "out", "options": {}, "set_aside": "bad", "patience_s": 60.0}'
        connection.execute(
            text(f"INSERT INTO batch_jobs ({columns}, rows_before_run, key_id, created_s) VALUES (:id, 'a', :kind, :work, {_OLD_VALUES})"),
            [
                {"id": "job-1", "kind": "embed", "work": work},
                {"id": "job-2", "kind": "evaluate", "work": '{"tasks": ["piqa"], "output": "out", "shots": -1}'},
            ],
        )
        connection.commit()
    older.dispose()
    rows, evaluation = JobStore(open_database(url)).open_jobs()
    assert (rows.work, rows.runs_without_progress) == (RowsWork("in", "out", rejects="bad", max_stall_s=60.0), 3)
    assert evaluation.work == EvaluateWork(("piqa",), "out")
