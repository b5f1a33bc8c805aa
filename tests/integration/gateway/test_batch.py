"""BatchService over a real port with a real database, to which the tests write what the job controller would."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from neox_serve.client import AsyncClient, BatchJob, Client, JobLog
from neox_serve.client.options import FinetuneOptions
from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.jobs import job as core_jobs
from neox_serve.core.jobs.evaluate import EvaluateWork
from neox_serve.core.jobs.finetune import FinetuneWork
from neox_serve.core.jobs.job import JobState, Progress
from neox_serve.core.jobs.quantize import QuantizeWork
from neox_serve.core.jobs.rows import RowsWork
from neox_serve.core.tenancy.tenants import ANONYMOUS, Role, Tenant
from neox_serve.gateway.server.server import GatewayServer
from neox_serve.settings import restore
from neox_serve.tenancy.platform import Platform
from neox_serve.v1 import batch_service_pb2 as pb
from neox_serve.v1.batch_service_pb2_grpc import BatchServiceStub
from tests.fakes.gateways import running_gateway
from tests.fakes.scripted_dispatcher import ScriptedDispatcher


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    opened = await Platform.open(restore({"state_folder": str(tmp_path)}), "gateway-under-test")
    yield opened
    await opened.close()


@pytest.fixture
async def server(platform: Platform) -> AsyncIterator[GatewayServer]:
    async with running_gateway(ScriptedDispatcher(), platform=platform, access={"allow_anonymous": True}) as server:
        yield server


@pytest.fixture
async def client(server: GatewayServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"127.0.0.1:{server.port}") as client:
        yield client


@asynccontextmanager
async def client_of(platform: Platform, server: GatewayServer, tenant: Tenant) -> AsyncIterator[AsyncClient]:
    """A client that presents a key of a new tenant."""
    platform.tenants.add(tenant, "test")
    made, _ = platform.tenants.add_key(tenant.name, "test")
    await platform.directory.refresh()
    async with AsyncClient(f"127.0.0.1:{server.port}", api_key=made.text) as client:
        yield client


async def refused(reason: Reason, call: Any) -> ServeError:
    with pytest.raises(ServeError) as caught:
        await call
    assert caught.value.reason is reason, caught.value
    return caught.value


def update(platform: Platform, job: BatchJob, **values: Any) -> None:
    """Writes what the job controller would."""
    platform.jobs.update(replace(platform.jobs.job(ANONYMOUS, job.job_id), **values))


async def test_created_job_is_queued_with_every_option(platform: Platform, client: AsyncClient) -> None:
    job = await client.create_job("generate", "june/in.jsonl", "june/out.jsonl", options={"max_tokens": 5}, rejects="bad.jsonl")
    assert (job.kind, job.state, job.input, job.output) == ("generate", JobState.QUEUED, "june/in.jsonl", "june/out.jsonl")
    assert (job.total_rows, job.runs, job.started_s, job.ended_s) == (0, 0, None, None)
    (kept,) = platform.jobs.open_jobs()
    assert (kept.job_id, kept.tenant, kept.kind) == (job.job_id, ANONYMOUS, "generate")
    assert kept.work == RowsWork("june/in.jsonl", "june/out.jsonl", {"max_tokens": 5}, "bad.jsonl", 32, 600.0)
    assert await client.job(job.job_id) == job


async def test_repeated_request_id_finds_the_job_and_is_refused_with_other_work(client: AsyncClient) -> None:
    first = await client.create_job("embed", "in", "out", request_id="june")
    assert await client.create_job("embed", "in", "out", request_id="june") == first
    error = await refused(Reason.INVALID_ARGUMENT, client.create_job("embed", "in", "other", request_id="june"))
    assert [violation.field for violation in error.violations] == ["request_id"]
    assert (await client.create_job("embed", "in", "out")).job_id != first.job_id


async def test_pages_contain_every_job_once_newest_first(client: AsyncClient) -> None:
    made = [(await client.create_job("embed", "in", f"out{number}")).job_id for number in range(5)]
    seen, token = list[str](), ""
    while True:
        page = await client.jobs(page_size=2, page_token=token)
        seen += [job.job_id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted(made, reverse=True)
    error = await refused(Reason.INVALID_ARGUMENT, client.jobs(page_size=1_001))
    assert [violation.field for violation in error.violations] == ["page_size"]


async def test_watch_sends_every_change_until_the_job_ends(platform: Platform, client: AsyncClient) -> None:
    job = await client.create_job("generate", "in", "out")
    seen = list[tuple[JobState, int]]()
    async for now in client.watch_job(job.job_id):
        seen.append((now.state, now.completed_rows))
        if now.state is JobState.QUEUED:
            update(platform, job, state=JobState.RUNNING, started_s=1.5, progress=Progress(10, 4))
        elif now.completed_rows == 4:
            update(platform, job, state=JobState.FAILED, ended_s=2.5, progress=Progress(10, 6), message="no space left")
    assert seen == [(JobState.QUEUED, 0), (JobState.RUNNING, 4), (JobState.FAILED, 6)]
    assert (now.message, now.started_s, now.ended_s) == ("no space left", 1.5, 2.5)


async def test_blocking_client_creates_and_watches_jobs(platform: Platform, server: GatewayServer) -> None:
    def use() -> list[JobState]:
        with Client(f"127.0.0.1:{server.port}") as client:
            job = client.create_job("embed", "in", "out")
            assert client.jobs().jobs == (job,)
            states = []
            for now in client.watch_job(job.job_id):
                states.append(now.state)
                update(platform, client.job(job.job_id), state=JobState.SUCCEEDED, ended_s=2.0)
            return states

    assert await asyncio.to_thread(use) == [JobState.QUEUED, JobState.SUCCEEDED]


async def test_watch_ends_at_its_deadline_and_on_drain(platform: Platform, server: GatewayServer, client: AsyncClient) -> None:
    job = await client.create_job("generate", "in", "out")
    watch = client.watch_job(job.job_id, timeout_s=0.3)
    with pytest.raises(ServeError) as late:
        assert [now.state async for now in watch]
    assert late.value.reason is Reason.DEADLINE_EXCEEDED
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = BatchServiceStub(channel).WatchJob(pb.WatchJobRequest(job_id=job.job_id))
        first: Any = await call.read()
        assert first.job.job_id == job.job_id
        await asyncio.wait_for(server.drain(20.0), 10)
        with pytest.raises(grpc.aio.AioRpcError) as drained:
            await call.read()
    assert drained.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_cancel_is_recorded_unless_the_job_has_ended(platform: Platform, client: AsyncClient) -> None:
    job = await client.create_job("generate", "in", "out")
    assert (await client.cancel_job(job.job_id)).cancel_requested
    done = await client.create_job("generate", "in", "out2")
    update(platform, done, state=JobState.SUCCEEDED, ended_s=1.0)
    assert not (await client.cancel_job(done.job_id)).cancel_requested


async def test_tenants_only_see_their_own_jobs(platform: Platform, server: GatewayServer) -> None:
    async with client_of(platform, server, Tenant("acme")) as acme, client_of(platform, server, Tenant("other")) as other:
        mine = await acme.create_job("generate", "in", "out", request_id="same")
        yours = await other.create_job("generate", "in", "out", request_id="same")
        assert mine.job_id != yours.job_id
        assert [job.job_id for job in (await acme.jobs()).jobs] == [mine.job_id]
        await refused(Reason.UNKNOWN_JOB, acme.job(yours.job_id))
        await refused(Reason.UNKNOWN_JOB, acme.cancel_job(yours.job_id))
        with pytest.raises(ServeError, match="there is no job"):
            assert [now async for now in acme.watch_job(yours.job_id)]
        assert not (await other.job(yours.job_id)).cancel_requested


async def test_role_that_may_not_run_models_may_not_create_jobs(platform: Platform, server: GatewayServer) -> None:
    async with client_of(platform, server, Tenant("watcher", role=Role.OPERATOR)) as watcher:
        await refused(Reason.PERMISSION_DENIED, watcher.create_job("generate", "in", "out"))


async def test_file_outside_the_tenants_folder_is_refused(platform: Platform, server: GatewayServer, client: AsyncClient) -> None:
    async with client_of(platform, server, Tenant("acme")) as acme:
        for name in ("/etc/passwd", "../other/in.jsonl", "a/../../b", "", ".", "a\0b", "x" * 1_025):
            error = await refused(Reason.INVALID_ARGUMENT, acme.create_job("generate", name, "out"))
            assert [violation.field for violation in error.violations] == ["rows.input"]
    assert (await client.create_job("generate", "/data/in", "/data/out")).input == "/data/in"


async def test_all_wrong_fields_are_named(client: AsyncClient) -> None:
    same: Any = {"rejects": "in", "concurrency": 2_000, "max_stall_s": 0.0, "request_id": "a b"}
    error = await refused(Reason.INVALID_ARGUMENT, client.create_job("generate", "in", "in", **same))
    named = ["request_id", "rows.output", "rows.rejects", "rows.concurrency", "rows.max_stall"]
    assert [violation.field for violation in error.violations] == named
    wrong: Any = "translate"
    await refused(Reason.INVALID_ARGUMENT, client.create_job(wrong, "in", "out"))


@pytest.mark.parametrize("options_json", ["[]", "{", "x" * 70_000])
async def test_options_that_are_not_an_object_are_refused(server: GatewayServer, options_json: str) -> None:
    rows = pb.RowsWork(work=pb.ROW_WORK_GENERATE, input="in", output="out", options_json=options_json)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=r"rows\.options_json"):
            await BatchServiceStub(channel).CreateJob(pb.CreateJobRequest(rows=rows))


@pytest.mark.parametrize("into", ["milvus:a.db", "qdrant:a#b", "milvus:../a.db#b", "milvus:http://h:1#b", "lancedb:/data#b"])
async def test_vector_database_outside_the_tenants_folder_is_refused(platform: Platform, server: GatewayServer, into: str) -> None:
    async with client_of(platform, server, Tenant("acme")) as acme:
        error = await refused(Reason.INVALID_ARGUMENT, acme.create_job("embed", "in", "out", into=into))
        assert [violation.field for violation in error.violations] == ["rows.into"]


async def test_vector_database_is_only_accepted_with_embed(client: AsyncClient) -> None:
    job = await client.create_job("embed", "in", "out", into="milvus:vectors.db#words")
    assert job.kind == "embed"
    error = await refused(Reason.INVALID_ARGUMENT, client.create_job("generate", "in", "out", into="milvus:vectors.db#words"))
    assert [violation.field for violation in error.violations] == ["rows.into"]


async def test_missing_work_is_refused(server: GatewayServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=r"rows\.work"):
            await BatchServiceStub(channel).CreateJob(pb.CreateJobRequest(rows=pb.RowsWork(input="in", output="out")))


@pytest.fixture
async def training_server(platform: Platform, tmp_path: Path) -> AsyncIterator[GatewayServer]:
    """A gateway with a registry of adapters."""
    model = {"registry": str(tmp_path / "registry")}
    async with running_gateway(ScriptedDispatcher(), platform=platform, access={"allow_anonymous": True}, model=model) as server:
        yield server


async def test_created_training_is_queued_with_every_option(platform: Platform, training_server: GatewayServer, tmp_path: Path) -> None:
    options: FinetuneOptions = {
        "request_id": "one",
        "rank": 4,
        "targets": ["dense"],
        "evaluation_fraction": 0.0,
        "early_stop_epochs": 0,
        "workers": 2,
    }
    async with client_of(platform, training_server, Tenant("acme")) as client:
        job = await client.create_finetune("in.jsonl", "chat", **options)
        assert await client.create_finetune("in.jsonl", "chat", **options) == job
        folder = tmp_path / "registry" / "acme" / "chat"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        assert await client.create_finetune("in.jsonl", "chat", **options) == job, "a repeat finds the job even if the adapter exists"
        assert await client.job(job.job_id) == job
    assert (job.kind, job.input, job.output, job.state) == ("finetune", "in.jsonl", "acme/chat", JobState.QUEUED)
    (kept,) = platform.jobs.open_jobs()
    expected = FinetuneWork("in.jsonl", "acme/chat", rank=4, targets=("dense",), evaluation_fraction=0.0, early_stop_epochs=0, workers=2)
    assert kept.work == expected


async def test_adapter_of_an_operator_has_no_tenant_in_its_name(training_server: GatewayServer) -> None:
    async with AsyncClient(f"127.0.0.1:{training_server.port}") as client:
        assert (await client.create_finetune("/in.jsonl", "chat")).output == "chat"


async def test_invalid_training_is_refused_with_its_fields(platform: Platform, training_server: GatewayServer) -> None:
    async with client_of(platform, training_server, Tenant("acme")) as client:
        wrong = client.create_finetune("/in.jsonl", "x/chat", rank=17, targets=["embed_in"], epochs=1001)
        error = await refused(Reason.INVALID_ARGUMENT, wrong)
        assert [one.field for one in error.violations] == [
            "finetune.input",
            "finetune.adapter",
            "finetune.targets",
            "finetune.epochs",
            "finetune.rank",
        ]
        error = await refused(Reason.INVALID_ARGUMENT, client.create_finetune("in", "chat", targets=["embed_in"], epochs=1001))
        assert [one.field for one in error.violations] == ["finetune.targets", "finetune.epochs"]


async def test_training_without_a_registry_is_refused(client: AsyncClient) -> None:
    error = await refused(Reason.INVALID_ARGUMENT, client.create_finetune("in", "chat"))
    assert "model.registry" in error.violations[0].description


async def test_adapter_is_served_to_its_tenant_and_granted_tenants(
    platform: Platform, training_server: GatewayServer, tmp_path: Path
) -> None:
    granted = Tenant("granted", adapters=frozenset({"acme/chat"}))
    async with (
        client_of(platform, training_server, Tenant("acme")) as owner,
        client_of(platform, training_server, Tenant("other")) as other,
        client_of(platform, training_server, granted) as guest,
    ):
        folder = tmp_path / "registry" / "acme" / "chat"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        async with asyncio.timeout(5):
            while not (await owner.models())[0].adapters:  # noqa: ASYNC110 - what changes is in another process's folder
                await asyncio.sleep(0.05)
        assert (await owner.models())[0].adapters == (await guest.models())[0].adapters == ("acme/chat",)
        assert (await other.models())[0].adapters == ()
        await refused(Reason.UNKNOWN_ADAPTER, other.generate("a", adapter="acme/chat"))
        error = await refused(Reason.INVALID_ARGUMENT, owner.create_finetune("in", "chat"))
        assert "'acme/chat' exists already" in error.violations[0].description


async def test_created_quantization_is_queued_with_every_option(platform: Platform, client: AsyncClient) -> None:
    job = await client.create_quantization("w4a16", "small", "text", "other", sequences=8, request_id="one")
    assert (job.kind, job.input, job.output, job.state) == ("quantize", "text", "small", JobState.QUEUED)
    (kept,) = platform.jobs.open_jobs()
    assert kept.work == QuantizeWork("w4a16", "small", "text", "other", sequences=8)
    assert await client.create_quantization("w4a16", "small", "text", "other", sequences=8, request_id="one") == job


async def test_invalid_quantization_is_refused_with_its_fields(platform: Platform, server: GatewayServer) -> None:
    async with client_of(platform, server, Tenant("acme")) as client:
        wrong = client.create_quantization("w2", "/out", "text", "text", sequence_tokens=4096, serve_tokens=8)
        error = await refused(Reason.INVALID_ARGUMENT, wrong)
        fields = ["quantize.output", "quantize.held_out", "quantize.scheme", "quantize.sequence_tokens", "quantize.serve_tokens"]
        assert [one.field for one in error.violations] == fields
        error = await refused(Reason.INVALID_ARGUMENT, client.create_job("generate", "in", "out", own_engine=True))
        assert [one.field for one in error.violations] == ["rows.own_engine"]


async def test_log_of_a_job_is_only_shown_to_its_tenant(platform: Platform, server: GatewayServer) -> None:
    async with client_of(platform, server, Tenant("acme")) as owner, client_of(platform, server, Tenant("other")) as other:
        job = await owner.create_job("generate", "in.jsonl", "out.jsonl")
        assert await owner.job_log(job.job_id) == JobLog("", 0, "")
        (kept,) = platform.jobs.open_jobs()
        platform.jobs.update_log(kept, core_jobs.JobLog.of("run-1", "x" * 100_000 + "end"))
        log = await owner.job_log(job.job_id)
        assert (log.run_id, log.start, log.text[-3:], len(log.text)) == ("run-1", 100_003 - 65_536, "end", 65_536)
        await refused(Reason.UNKNOWN_JOB, other.job_log(job.job_id))


async def test_created_evaluation_is_queued_with_every_option(platform: Platform, client: AsyncClient) -> None:
    job = await client.create_evaluation(["piqa", "sciq"], "june/scores.json", shots=0, limit=5, request_id="one")
    assert (job.kind, job.input, job.output, job.state) == ("evaluate", "piqa,sciq", "june/scores.json", JobState.QUEUED)
    (kept,) = platform.jobs.open_jobs()
    assert kept.work == EvaluateWork(("piqa", "sciq"), "june/scores.json", shots=0, limit=5)
    assert await client.create_evaluation(["piqa", "sciq"], "june/scores.json", shots=0, limit=5, request_id="one") == job


async def test_invalid_evaluation_is_refused_with_its_fields(platform: Platform, server: GatewayServer) -> None:
    async with client_of(platform, server, Tenant("acme")) as client:
        error = await refused(Reason.INVALID_ARGUMENT, client.create_evaluation(["../x"], "/out.json", shots=101))
        assert [one.field for one in error.violations] == ["evaluate.output", "evaluate.tasks", "evaluate.shots"]
        error = await refused(Reason.UNKNOWN_ADAPTER, client.create_evaluation(["piqa"], "out.json", adapter="none"))
