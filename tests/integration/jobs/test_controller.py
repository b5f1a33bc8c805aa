"""The job controller with a real database and scripted runs."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from deployments.jobs.access import Access
from deployments.jobs.bulk.run import BulkRun
from deployments.jobs.controller.accounts import Accounts
from deployments.jobs.controller.commands import RunSettings
from deployments.jobs.controller.controller import JobController
from deployments.jobs.evaluate.run import EvaluateRun
from deployments.jobs.finetune.run import FinetuneRun
from deployments.jobs.quantize.run import QuantizeRun
from deployments.jobs.reports import ReportFile
from neox_serve.core.jobs.evaluate import EVALUATE, EvaluateWork
from neox_serve.core.jobs.finetune import FINETUNE, FinetuneWork
from neox_serve.core.jobs.job import Job, JobLog, JobState, Progress, RunStatus, Start
from neox_serve.core.jobs.quantize import QUANTIZE, QuantizeWork
from neox_serve.core.jobs.rows import RowsWork
from neox_serve.core.tenancy.quota import QuotaLedger, Spent
from neox_serve.core.tenancy.tenants import ANONYMOUS, Quotas, Tenant
from neox_serve.core.types import Pool
from neox_serve.settings.engines import ModelSettings
from neox_serve.tenancy.database import open_database
from neox_serve.tenancy.job_store import JobStore
from neox_serve.tenancy.tenant_store import TenantStore
from neox_serve.tenancy.usage_store import UsageStore
from tests.fakes.forgetful_ray import ForgetfulRay

SECRET = b"s" * 32
NOW_S = 9.0
WORK = RowsWork("in.jsonl", "out.jsonl", {"max_tokens": 3}, concurrency=8, max_stall_s=60.0)


class World:
    """A controller and everything that it works with."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.store, self.tenants, self.runs = JobStore(engine), TenantStore(engine), ForgetfulRay()
        self.settings = RunSettings(str(folder / "batch"), folder / "notes", Access("127.0.0.1:1"), max_running_jobs=2)
        self.usage, self.charged = UsageStore(engine), dict[str, list[Spent]]()
        self.ledger, self.router_away = QuotaLedger(Random(1)), False
        self.controller = self.new_controller()

    def new_controller(self, **changes: Any) -> JobController:
        """Returns a controller without any state, as after a restart."""
        accounts = Accounts(self.usage, SECRET, "neox", self)
        return JobController(self.store, self.tenants, self.runs, replace(self.settings, **changes), accounts, clock=lambda: NOW_S)

    def charge(self, spent: Mapping[str, Iterable[Spent]]) -> None:
        self.charged |= {source: list(entries) for source, entries in spent.items()}
        for source, entries in self.charged.items():
            self.ledger.restore(source, (), entries, NOW_S)

    def used_up(self, tenant: Tenant) -> tuple[str, ...]:
        if self.router_away:
            raise TimeoutError("the router is away")
        return self.ledger.used_up(tenant.name, tenant.quotas, NOW_S)

    def new_job(self, tenant: str = ANONYMOUS, **work: Any) -> Job:
        return self.store.create(tenant, "generate", replace(WORK, **work))

    def look(self, job: Job) -> Job:
        """Reconciles once and returns the job."""
        self.controller.reconcile()
        return self.store.job(job.tenant, job.job_id)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(open_database(f"sqlite:///{tmp_path}/neox.db"), tmp_path)


def report_of(world: World, job: Job) -> ReportFile:
    path = world.runs.run(BulkRun, job.run_id).report
    assert path is not None
    return ReportFile(path)


def test_job_runs_in_its_tenants_folder_until_it_succeeds(world: World) -> None:
    job = world.look(world.new_job(rejects="bad.jsonl"))
    run = world.runs.run(BulkRun, job.run_id)
    assert (job.state, job.run_id, job.started_s) == (JobState.RUNNING, f"{job.job_id}-1", NOW_S)
    folder = f"{world.settings.folder}/{ANONYMOUS}"
    assert run.work == replace(WORK, input=f"{folder}/in.jsonl", output=f"{folder}/out.jsonl", rejects=f"{folder}/bad.jsonl")
    assert (run.job_id, run.access) == (job.job_id, Access("127.0.0.1:1"))
    report_of(world, job).record(Progress(10, 4, 1, 50))
    assert world.look(job).progress == Progress(10, 4, 1, 50)
    world.runs.statuses[job.run_id] = RunStatus.SUCCEEDED
    done = world.look(job)
    assert (done.state, done.ended_s, done.progress.done) == (JobState.SUCCEEDED, NOW_S, 4)
    assert [*world.settings.state_folder.iterdir()] == []


@pytest.mark.parametrize(
    ("into", "located"),
    [("milvus:vectors.db#words", "milvus:{folder}/vectors.db#words"), ("milvus:http://h:1#words", "milvus:http://h:1#words")],
)
def test_vector_database_path_is_in_the_tenants_folder_and_a_url_is_unchanged(world: World, into: str, located: str) -> None:
    job = world.look(world.store.create(ANONYMOUS, "embed", replace(WORK, into=into)))
    run = world.runs.run(BulkRun, job.run_id)
    assert run.work.into == located.format(folder=f"{world.settings.folder}/{ANONYMOUS}")


def test_run_presents_a_key_of_its_tenant_that_is_revoked_when_the_job_ends(world: World) -> None:
    world.tenants.add(Tenant("acme"), "test")
    job = world.look(world.new_job("acme"))
    file = world.runs.run(BulkRun, job.run_id).access.api_key_file
    assert file is not None
    assert file.stat().st_mode & 0o077 == 0
    key = world.tenants.directory().keys[job.key_id]
    assert (key.tenant, key.label, key.revoked_s) == ("acme", job.job_id, None)
    assert file.read_text() not in world.runs.entrypoints[job.run_id]
    world.runs.statuses[job.run_id] = RunStatus.FAILED
    again = world.look(job)
    assert (again.run_id, again.key_id) == (f"{job.job_id}-2", job.key_id)
    world.runs.statuses[again.run_id] = RunStatus.SUCCEEDED
    world.look(job)
    assert world.tenants.directory().keys[job.key_id].revoked_s is not None
    assert not file.exists()


def test_job_whose_files_are_lost_gets_a_new_key_and_the_old_one_is_revoked(world: World) -> None:
    world.tenants.add(Tenant("acme"), "test")
    job = world.look(world.new_job("acme"))
    shutil.rmtree(world.settings.state_folder)
    del world.runs.statuses[job.run_id]
    again = world.look(job)
    file = world.runs.run(BulkRun, again.run_id).access.api_key_file
    assert file is not None
    assert file.exists()
    keys = world.tenants.directory().keys
    assert (keys[again.key_id].revoked_s, keys[job.key_id].revoked_s is None) == (None, False)


def test_run_that_reports_a_failure_fails_its_job(world: World) -> None:
    job = world.look(world.new_job())
    report_of(world, job).record(Progress(10, 4))
    report_of(world, job).record_failure("row 5: UNAUTHENTICATED: the API key is not valid")
    world.runs.statuses[job.run_id] = RunStatus.FAILED
    failed = world.look(job)
    assert (failed.state, failed.message) == (JobState.FAILED, "row 5: UNAUTHENTICATED: the API key is not valid")
    assert failed.progress.done == 4


def test_job_forgotten_by_ray_is_submitted_again_by_a_new_controller(world: World, tmp_path: Path) -> None:
    job = world.look(world.new_job())
    world.runs.statuses.clear()
    controller = world.new_controller()
    controller.reconcile()
    assert world.runs.statuses == {job.run_id: RunStatus.RUNNING}
    controller.reconcile()
    assert world.runs.started == [job.run_id, job.run_id]


def test_job_that_ray_cannot_start_has_a_message_and_starts_later(world: World) -> None:
    world.runs.away = True
    job = world.look(world.new_job())
    assert (job.state, job.message) == (JobState.RUNNING, "Ray cannot start the run yet, and is asked again: Ray is away")
    world.look(job)
    world.runs.away = False
    assert world.look(job).message == ""
    assert (world.runs.started, world.look(job).runs) == ([job.run_id], 1)


def test_two_controllers_start_a_job_once(world: World) -> None:
    job = world.new_job()
    other = world.new_controller()
    (seen,) = world.store.open_jobs()
    world.controller.reconcile()
    other._start(seen, Start())
    assert world.runs.started == [f"{job.job_id}-1"]


@pytest.mark.parametrize("began", [False, True])
def test_cancelled_job_ends_and_its_partial_output_is_removed(world: World, began: bool) -> None:
    job = world.new_job()
    partial = Path(world.settings.folder, ANONYMOUS, "out.jsonl.partial")
    if began:
        job = world.look(job)
        partial.parent.mkdir(parents=True)
        partial.write_text("{}\n")
    world.store.request_cancel(ANONYMOUS, job.job_id)
    world.look(job)
    cancelled = world.look(job)
    assert (cancelled.state, cancelled.message) == (JobState.CANCELLED, "cancelled")
    assert len(world.runs.entrypoints) == began
    assert not partial.exists()


def test_jobs_beyond_the_limit_wait(world: World) -> None:
    jobs = [world.new_job() for _ in range(3)]
    world.controller.reconcile()
    assert [world.store.job(ANONYMOUS, job.job_id).state for job in jobs] == [JobState.RUNNING, JobState.RUNNING, JobState.QUEUED]
    world.runs.statuses[f"{jobs[0].job_id}-1"] = RunStatus.SUCCEEDED
    world.controller.reconcile()
    assert world.look(jobs[2]).state is JobState.RUNNING


def test_damaged_report_is_ignored_until_it_is_replaced(world: World, tmp_path: Path) -> None:
    job = world.look(world.new_job())
    path = world.runs.run(BulkRun, job.run_id).report
    assert path is not None
    path.write_text(json.dumps({"other": 1}))
    assert world.look(job).progress == Progress()
    ReportFile(path).record(Progress(3, 1))
    assert world.look(job).progress == Progress(3, 1)


Event = st.sampled_from(["round", "round", "progress", "die", "forget", "away", "back", "cancel", "succeed"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(events=st.lists(Event, max_size=25))
def test_job_ends_exactly_once_and_has_one_run_at_a_time(events: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("world")
    world = World(open_database(f"sqlite:///{folder}/neox.db"), folder)
    job, rows = world.new_job(), 0
    for event in [*events, "back", "round", "round", "succeed", "round"]:
        before = world.store.job(ANONYMOUS, job.job_id)
        run = before.run_id
        if event == "round":
            world.controller.reconcile()
        elif event in {"away", "back"}:
            world.runs.away = event == "away"
        elif event == "cancel":
            world.store.request_cancel(ANONYMOUS, job.job_id)
        elif world.runs.statuses.get(run) is RunStatus.RUNNING:
            if event == "progress":
                rows += 1
                report_of(world, before).record(Progress(1000, rows))
            elif event == "forget":
                del world.runs.statuses[run]
            else:
                world.runs.statuses[run] = {"die": RunStatus.FAILED, "succeed": RunStatus.SUCCEEDED}[event]
        after = world.store.job(ANONYMOUS, job.job_id)
        assert after == before or not before.state.ended
        assert sum(status is RunStatus.RUNNING for status in world.runs.statuses.values()) <= 1
    assert after.state.ended
    assert len(world.runs.entrypoints) <= after.runs


def training(world: World, folder: Path, adapter: str = "acme/chat") -> Job:
    """Creates a training job in a world with a registry."""
    world.controller = world.new_controller(model=ModelSettings(registry=folder / "registry"))
    return world.store.create("acme", FINETUNE, FinetuneWork("in.jsonl", adapter, "bad.jsonl", rank=4))


def test_training_uses_its_tenants_files_and_no_key(world: World, tmp_path: Path) -> None:
    world.tenants.add(Tenant("acme"), "test")
    job = world.look(training(world, tmp_path))
    run = world.runs.run(FinetuneRun, job.run_id)
    folder = f"{world.settings.folder}/acme"
    assert run.work == FinetuneWork(f"{folder}/in.jsonl", "acme/chat", f"{folder}/bad.jsonl", rank=4)
    assert (run.model, run.output, run.ray_address) == ("builtin", tmp_path / "registry" / "acme" / "chat", "auto")
    assert (job.state, job.key_id) == (JobState.RUNNING, "")
    assert run.report is not None
    ReportFile(run.report).record_failure("line 3: has nothing to learn")
    world.runs.statuses[job.run_id] = RunStatus.FAILED
    done = world.look(job)
    assert (done.state, done.message) == (JobState.FAILED, "line 3: has nothing to learn")


def test_cancelled_training_removes_its_checkpoint(world: World, tmp_path: Path) -> None:
    world.tenants.add(Tenant("acme"), "test")
    job = world.look(training(world, tmp_path))
    unfinished = tmp_path / "registry" / "acme" / ".chat.partial"
    unfinished.mkdir(parents=True)
    (unfinished / "checkpoint").write_bytes(b"weights")
    world.store.request_cancel("acme", job.job_id)
    world.look(job)
    assert world.look(job).state is JobState.CANCELLED
    assert not unfinished.exists()


def test_evaluation_presents_a_key_and_caches_answers_for_its_next_run(world: World, tmp_path: Path) -> None:
    world.tenants.add(Tenant("acme"), "test")
    world.controller = world.new_controller(tasks_folder=tmp_path / "tasks")
    job = world.look(world.store.create("acme", EVALUATE, EvaluateWork(("lines",), "out.json", shots=2)))
    run = world.runs.run(EvaluateRun, job.run_id)
    assert run.work == EvaluateWork(("lines",), f"{world.settings.folder}/acme/out.json", shots=2)
    assert run.access.address == "127.0.0.1:1"
    assert run.access.api_key_file is not None
    assert run.access.api_key_file.exists()
    assert (run.tasks_folder, run.cache) == (tmp_path / "tasks", world.settings.state_folder / job.job_id / "answers")
    world.runs.statuses[job.run_id] = RunStatus.FAILED
    again = world.look(job)
    assert world.runs.run(EvaluateRun, again.run_id) == run


def test_quantization_gets_engine_settings_and_gpus_and_no_key(world: World) -> None:
    world.tenants.add(Tenant("acme"), "test")
    world.controller = world.new_controller(engine_settings={"model": {"source": "builtin"}}, engine_gpus={Pool.GENERATION: 2.0})
    job = world.look(world.store.create("acme", QUANTIZE, QuantizeWork("w8a8", "small", "text", "other", serve_tokens=8)))
    run = world.runs.run(QuantizeRun, job.run_id)
    folder = f"{world.settings.folder}/acme"
    assert run.work == QuantizeWork("w8a8", f"{folder}/small", f"{folder}/text", f"{folder}/other", serve_tokens=8)
    assert run.config is not None
    assert json.loads(run.config.read_text()) == {"model": {"source": "builtin"}}
    assert (world.runs.gpus[job.run_id], job.key_id) == (2.0, "")
    run.unfinished.mkdir(parents=True)
    world.store.request_cancel("acme", job.job_id)
    world.look(job)
    assert world.look(job).state is JobState.CANCELLED
    assert not run.unfinished.exists()


def test_rows_with_an_own_engine_get_gpus_and_no_key(world: World) -> None:
    world.tenants.add(Tenant("acme"), "test")
    world.controller = world.new_controller(engine_gpus={Pool.GENERATION: 4.0})
    own, usual = (world.look(world.new_job("acme", own_engine=own)) for own in (True, False))
    assert world.runs.run(BulkRun, own.run_id).work.own_engine
    assert (world.runs.gpus[own.run_id], own.key_id) == (4.0, "")
    assert (world.runs.gpus[usual.run_id], bool(usual.key_id)) == (0.0, True)


def test_usage_of_runs_without_calls_is_recorded_once_and_charged(world: World, tmp_path: Path) -> None:
    world.tenants.add(Tenant("acme"), "test")
    job = world.look(training(world, tmp_path))
    run = world.runs.run(FinetuneRun, job.run_id)
    assert run.report is not None
    ReportFile(run.report).record(Progress(10, 4, 0, 1_000))
    world.runs.statuses[job.run_id] = RunStatus.FAILED
    again = world.look(job)
    assert again.runs == 2
    ReportFile(run.report).record(Progress(10, 10, 0, 700))
    world.runs.statuses[again.run_id] = RunStatus.SUCCEEDED
    done = world.look(again)
    assert done.state is JobState.SUCCEEDED
    (total,) = world.usage.sums(0, 10**18, "acme")
    assert (total.requests, total.failed_requests, total.prompt_tokens) == (2, 1, 1_700)
    assert world.charged == {job.run_id: [Spent("acme", NOW_S, 1, 1_000)], again.run_id: [Spent("acme", NOW_S, 1, 700)]}
    Accounts(world.usage, SECRET, "neox", world).record_run(done, "OK", NOW_S)
    assert world.usage.totals() == (2, 1_700, 0)
    assert world.usage.verify(SECRET) == []


def test_job_without_calls_waits_while_a_quota_is_used_up(world: World, tmp_path: Path) -> None:
    world.tenants.add(Tenant("acme", quotas=Quotas(tokens_per_day=100)), "test")
    world.charge({"before": [Spent("acme", NOW_S, 1, 100)]})
    waits = world.look(training(world, tmp_path))
    assert (waits.state, waits.message) == (JobState.QUEUED, "tokens_per_day is used up; the job starts when the quota has tokens again")
    calls, others = world.look(world.new_job("acme")), world.look(world.new_job())
    assert calls.state is others.state is JobState.RUNNING
    for job in (calls, others):
        world.runs.statuses[job.run_id] = RunStatus.SUCCEEDED
        assert world.look(job).state is JobState.SUCCEEDED
    gone = training(world, tmp_path, "acme/other")
    world.store.request_cancel("acme", gone.job_id)
    assert world.look(gone).state is JobState.CANCELLED
    world.tenants.change(Tenant("acme", quotas=Quotas(tokens_per_day=101)), "test")
    assert world.look(waits).state is JobState.RUNNING
    assert world.look(waits).message == ""


def test_job_whose_quota_is_unknown_does_not_delay_others(world: World, tmp_path: Path) -> None:
    world.tenants.add(Tenant("acme"), "test")
    waits, other = training(world, tmp_path), world.new_job()
    world.router_away = True
    assert world.look(other).state is JobState.RUNNING
    assert world.look(waits).state is JobState.QUEUED
    world.router_away = False
    assert world.look(waits).state is JobState.RUNNING


def test_usage_of_runs_with_calls_is_not_recorded_again(world: World) -> None:
    job = world.look(world.new_job())
    report_of(world, job).record(Progress(10, 10, 0, 50, 70))
    world.runs.statuses[job.run_id] = RunStatus.SUCCEEDED
    assert world.look(job).progress.prompt_tokens == 70
    assert world.usage.totals()[0] == 0


def test_training_fails_if_the_registry_is_removed(world: World, tmp_path: Path) -> None:
    world.tenants.add(Tenant("acme"), "test")
    job = world.look(training(world, tmp_path))
    world.controller = world.new_controller()
    world.runs.statuses.clear()
    failed = world.look(job)
    assert (failed.state, "model.registry" in failed.message) == (JobState.FAILED, True)


def test_log_of_a_run_is_stored_at_intervals_and_at_its_end(world: World) -> None:
    job = world.look(world.new_job())
    world.runs.logs[job.run_id] = "one\n"
    world.look(job)
    assert world.store.log(ANONYMOUS, job.job_id).text == "one\n"
    world.runs.logs[job.run_id] = "one\ntwo\n"
    world.look(job)
    assert world.store.log(ANONYMOUS, job.job_id).text == "one\n", "the log is only stored every few seconds"
    world.runs.statuses[job.run_id] = RunStatus.SUCCEEDED
    world.look(job)
    assert world.store.log(ANONYMOUS, job.job_id) == JobLog(job.run_id, 0, "one\ntwo\n")
