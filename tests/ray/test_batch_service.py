"""Batch jobs on a real cluster with fake engines: created over gRPC, run by Ray, and continued after failures."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments.jobs.bulk.row_files import partial_of
from neox_serve.client import BatchJob, Client, JobState, Reason, RetryPolicy, ServeError
from neox_serve.v1 import admin_service_pb2 as admin
from tests.clusters import GATEWAY, ROUTER, CommandCluster, wait_until

pytestmark = pytest.mark.ray

JOB = "deployments.jobs.bulk"
PATIENT = RetryPolicy(max_attempts=60, unreachable_delay_s=0.5)


@pytest.fixture
def client(cluster: CommandCluster) -> Iterator[Client]:
    with Client(cluster.address, retry=PATIENT) as client:
        yield client


@contextlib.contextmanager
def tenant(client: Client, cluster: CommandCluster, name: str) -> Iterator[Client]:
    """A client with a key of a new tenant, once its gateway knows the key."""
    client.admin(admin.CreateTenantRequest(tenant=admin.Tenant(name=name)))
    secret = client.admin(admin.CreateKeyRequest(tenant=name)).secret
    with Client(cluster.address, retry=PATIENT, api_key=secret) as own:
        wait_until(lambda: known(own), timeout_s=10)
        yield own


def known(client: Client) -> bool:
    """Returns whether the client's gateway knows its key."""
    try:
        client.jobs()
    except ServeError as error:
        if error.reason is not Reason.UNAUTHENTICATED:
            raise
        return False
    return True


def files(cluster: CommandCluster, name: str, count: int, owner: str = "anonymous", **options: Any) -> Path:
    """Writes the input of a job into its tenant's folder; returns the path of its output."""
    folder = cluster.settings.state_folder / "batch" / owner
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"prompt": f"row {number}", "ignore_eos": True, "max_tokens": 8, **options} for number in range(1, count + 1))
    (folder / f"{name}.in").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / f"{name}.out"


def create(client: Client, output: Path, **options: Any) -> BatchJob:
    """Creates the job with this output."""
    name = output.stem
    return client.create_job("generate", f"{name}.in", f"{name}.out", request_id=f"{name}-job", **options)


def rows_of(path: Path) -> list[int]:
    return [json.loads(line)["row"] for line in path.read_text().splitlines()]


def watched(client: Client, job: BatchJob) -> list[BatchJob]:
    """Returns everything that a watch sends until the job ends."""
    return list(client.watch_job(job.job_id, timeout_s=180))


def completed(output: Path, count: int) -> Callable[[], bool]:
    """Returns whether `count` rows are complete before the output is published."""
    partial = Path(partial_of(str(output)))
    return lambda: partial.exists() and partial.read_bytes().count(b"\n") >= count


def kill(cluster: CommandCluster, title: str) -> None:
    for process in cluster.processes(title):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_job_created_over_grpc_succeeds_and_is_watched(cluster: CommandCluster, client: Client) -> None:
    output = files(cluster, "whole", 60)
    job = create(client, output)
    seen = watched(client, job)
    last = seen[-1]
    assert (last.state, last.completed_rows, last.total_rows, last.error_rows) == (JobState.SUCCEEDED, 60, 60, 0), last
    assert last.tokens == 60 * 8
    assert (last.runs, last.run_id) == (1, f"{job.job_id}-1")
    assert rows_of(output) == list(range(1, 61))
    assert create(client, output) == last
    assert not (cluster.settings.state_folder / "jobs" / job.job_id).exists()


def test_job_of_a_tenant_is_charged_to_it_and_its_key_is_revoked(cluster: CommandCluster, client: Client) -> None:
    output = files(cluster, "own", 12, "acme")
    with tenant(client, cluster, "acme") as acme:
        last = watched(acme, create(acme, output))[-1]
    assert last.state is JobState.SUCCEEDED, last
    assert rows_of(output) == list(range(1, 13))

    def used() -> Any:
        return [one for one in client.admin(admin.GetUsageRequest(tenant="acme")).sums if one.requests == 12]

    (usage,) = wait_until(used)
    assert (usage.completion_tokens, usage.failed_requests) == (12 * 8, 0)
    keys = client.admin(admin.ListKeysRequest(tenant="acme")).keys
    assert {key.label: key.HasField("revoke_time") for key in keys} == {"": False, last.job_id: True}
    with pytest.raises(ServeError, match="there is no job"):
        client.job(last.job_id)


def test_job_whose_key_is_revoked_fails(cluster: CommandCluster, client: Client) -> None:
    output = files(cluster, "revoked", 40, "wary", max_tokens=60)
    with tenant(client, cluster, "wary") as wary:
        job = create(wary, output, concurrency=2)
        wait_until(completed(output, 2))
        (key,) = [key for key in client.admin(admin.ListKeysRequest(tenant="wary")).keys if key.label == job.job_id]
        client.admin(admin.RevokeKeyRequest(key_id=key.key_id))
        last = watched(wary, job)[-1]
    assert last.state is JobState.FAILED
    assert "UNAUTHENTICATED" in last.message
    assert not output.exists()
    assert 2 <= last.completed_rows < 40


def test_job_without_an_input_fails(cluster: CommandCluster, client: Client) -> None:
    output = files(cluster, "unusable", 2)
    output.with_suffix(".in").write_text('{"prompt": "a"}\n{"prompt": 1}\n')
    last = watched(client, create(client, output))[-1]
    assert last.state is JobState.FAILED
    assert "line 2: " in last.message
    assert not output.exists()


def test_job_continues_after_its_process_router_and_gateways_are_killed(cluster: CommandCluster, client: Client) -> None:
    output = files(cluster, "killed", 40, max_tokens=30)
    job = create(client, output, concurrency=4)
    wait_until(completed(output, 4))
    kill(cluster, JOB)
    wait_until(lambda: client.job(job.job_id).runs == 2)
    wait_until(completed(output, 12))
    kill(cluster, ROUTER)
    wait_until(completed(output, 18))
    kill(cluster, GATEWAY)
    last = watched(client, job)[-1]
    assert (last.state, last.completed_rows, last.runs) == (JobState.SUCCEEDED, 40, 2), last
    assert rows_of(output) == list(range(1, 41))
    assert all("error" not in json.loads(line) for line in output.read_text().splitlines())


def test_cancelled_job_stops_and_its_output_is_removed(cluster: CommandCluster, client: Client) -> None:
    output = files(cluster, "cancelled", 40, max_tokens=60)
    job = create(client, output, concurrency=2)
    wait_until(completed(output, 2))
    assert client.cancel_job(job.job_id).cancel_requested
    last = watched(client, job)[-1]
    assert (last.state, last.message) == (JobState.CANCELLED, "cancelled")
    assert 2 <= last.completed_rows < 40
    assert not output.exists()
    assert not Path(partial_of(str(output))).exists()
    assert not cluster.processes(JOB)


def test_job_continues_in_the_next_cluster(cluster: CommandCluster, client: Client) -> None:
    output = files(cluster, "outlived", 30, max_tokens=30)
    job = create(client, output, concurrency=3)
    wait_until(completed(output, 6))
    before = Path(partial_of(str(output))).read_bytes().splitlines()[:6]
    for process in cluster.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    cluster.wait_stopped()
    cluster.start()
    last = watched(client, job)[-1]
    assert (last.state, last.completed_rows) == (JobState.SUCCEEDED, 30), last
    assert rows_of(output) == list(range(1, 31))
    assert set(before) <= set(output.read_bytes().splitlines())
