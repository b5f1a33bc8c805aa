"""Bulk runs with Parquet files and with files in S3, on a real S3 server in a process of its own."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from deployments.jobs.bulk.row_files import RemoteOutput, partial_of
from deployments.jobs.bulk.rows import GENERATE
from deployments.jobs.bulk.run import BulkRun
from deployments.jobs.bulk.runner import run, survey
from deployments.jobs.failures import JobError
from deployments.jobs.files.storage import exists, files_in, joined, put, reading, remove
from deployments.jobs.progress import JobProgress
from neox_serve.core.errors import invalid
from tests.clusters import free_port
from tests.fakes.scripted_gateway import ScriptedGateway
from tests.run_arguments import arguments_of, bulk_run

SERVER = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
server.start()
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with ScriptedGateway() as scripted:
        yield scripted


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of a bucket that this process and its child processes can use."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ENDPOINT_URL", f"http://127.0.0.1:{port}"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.kill()
    server.wait()
    server.stdout.close()


def job_of(source: str, output: str, gateway: ScriptedGateway, **options: Any) -> BulkRun:
    return bulk_run("generate", source, output, gateway.address, "job-1", **options)


def surveyed(job: BulkRun) -> dict[int, str]:
    """The keys of a run's good rows."""
    return survey(job.kind, job.work)


async def do(job: BulkRun) -> JobProgress:
    return await asyncio.wait_for(run(job, survey(job.kind, job.work), Console(file=io.StringIO())), 60)


def jsonl(rows: list[Any]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def numbers_in(file: str) -> list[int]:
    with reading(file) as stream:
        return [json.loads(line)["row"] for line in stream]


async def test_run_reads_and_writes_parquet(tmp_path: Path, gateway: ScriptedGateway) -> None:
    rows = [{"id": f"r{number}", "prompt": f"p{number}", "max_tokens": number if number % 2 else None} for number in range(1, 8)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    gateway.script("Generate", invalid("prompts[0]", "too strange"))
    job = job_of(str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), gateway, concurrency=1)
    await do(job)
    table = pq.read_table(job.work.output).to_pylist()
    assert [row["row"] for row in table] == list(range(1, 8))
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    assert [row["text"] for row in table] == [None, *(f"P{number}" for number in range(2, 8))]
    assert (table[0]["error_reason"], table[1]["error_reason"]) == ("INVALID_ARGUMENT", None)
    assert json.loads(table[1]["completions"])[0]["text"] == "P2"
    assert table[1]["prompt_tokens"] > 0
    asked = {request.request_id: request.parameters.stopping for request in gateway.requests("Generate")}
    assert (asked["job-1:3"].max_tokens, asked["job-1:4"].HasField("max_tokens")) == (3, False)
    calls = len(gateway.received)
    assert (await do(job)).done == 7
    assert len(gateway.received) == calls


async def test_vectors_are_written_as_float32(tmp_path: Path, gateway: ScriptedGateway) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl([{"text": "a"}, {"text": "abc"}]))
    await do(replace(job_of(str(tmp_path / "in.jsonl"), str(tmp_path / "out.parquet"), gateway), kind="embed"))
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("vector").type == pa.list_(pa.float32())
    assert table["vector"].to_pylist() == [[1.0, 1.0], [3.0, 1.0]]


def test_parquet_that_is_damaged_or_lacks_the_column_is_refused(tmp_path: Path, gateway: ScriptedGateway) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(JobError, match=r"torn\.parquet: .*[Pp]arquet"):
        surveyed(job_of(str(tmp_path / "torn.parquet"), "o", gateway))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "drifted.parquet")
    with pytest.raises(JobError, match=r'drifted\.parquet: there is no column "prompt"; the columns are: text'):
        surveyed(job_of(str(tmp_path / "drifted.parquet"), "o", gateway))
    pq.write_table(pa.table({"prompt": ["a", ""], "temprature": [0.1, None]}), tmp_path / "bad.parquet")
    with pytest.raises(JobError, match=r"line 1: unknown keys: temprature\n.*line 2: .*not be empty"):
        surveyed(job_of(str(tmp_path / "bad.parquet"), "o", gateway))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
async def test_run_in_a_bucket_completes_every_row(s3: str, gateway: ScriptedGateway, ending: str) -> None:
    put(f"{s3}/whole/in.jsonl", jsonl([{"prompt": f"p{number}"} for number in range(1, 30)]))
    job = job_of(f"{s3}/whole/in.jsonl", f"{s3}/whole/out.{ending}", gateway, rejects=f"{s3}/whole/bad.jsonl")
    await do(job)
    with reading(job.work.output) as stream:
        rows = pq.read_table(stream)["row"].to_pylist() if ending == "parquet" else [json.loads(line)["row"] for line in stream]
    assert rows == list(range(1, 30))
    assert files_in(partial_of(job.work.output)) == []
    assert exists(f"{s3}/whole/bad.jsonl")
    calls = len(gateway.received)
    await do(job)
    assert len(gateway.received) == calls


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_run_in_a_bucket_killed_and_restarted_completes_each_row_once(
    number: signal.Signals, s3: str, gateway: ScriptedGateway
) -> None:
    async def nothing() -> None:
        """Lets the call be answered."""

    gateway.script("Generate", *[nothing] * 3, gateway.hang)
    name = f"{s3}/killed-{number}"
    put(f"{name}/in.jsonl", jsonl([{"prompt": f"p{number}"} for number in range(6)]))
    job = job_of(f"{name}/in.jsonl", f"{name}/out.jsonl", gateway, concurrency=1)
    command = [sys.executable, "-m", "deployments.jobs.bulk", *arguments_of(job)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    await gateway.wait_for_calls(4)
    process.send_signal(number)
    await asyncio.wait_for(process.wait(), 20)
    assert not exists(job.work.output)
    kept = sum(len(numbers_in(part)) for part in files_in(partial_of(job.work.output)))
    assert kept == (3 if number == signal.SIGTERM else 0)
    await do(job)
    assert numbers_in(job.work.output) == [1, 2, 3, 4, 5, 6]
    assert len(gateway.received) == 4 + 6 - kept


def test_parts_are_stored_at_intervals_and_rows_of_two_runs_are_kept_once(s3: str) -> None:
    file, now_s = f"{s3}/parts/out.jsonl", 0.0
    lines = [json.dumps({"row": row, "key": "k"}).encode() + b"\n" for row in (3, 1, 2, 1)]
    with RemoteOutput(GENERATE, file, clock=lambda: now_s) as first:
        first.append(lines[0])
        assert files_in(partial_of(file)) == []
        now_s = 11.0
        first.append(lines[1])
        assert len(files_in(partial_of(file))) == 1
    with RemoteOutput(GENERATE, file) as second:
        assert sorted(second.completed.positions) == [1, 3]
        second.append(lines[2])
        second.append(lines[3])
        second.publish()
    assert numbers_in(file) == [1, 2, 3]


async def test_missing_bucket_and_unknown_store_are_named(s3: str, gateway: ScriptedGateway) -> None:
    with pytest.raises(JobError, match=r"s3://nowhere/in\.jsonl: .*bucket does not exist") as missing:
        surveyed(job_of("s3://nowhere/in.jsonl", f"{s3}/o", gateway))
    assert missing.value.exit_code == 2
    put(f"{s3}/good/in.jsonl", jsonl([{"prompt": "a"}]))
    with pytest.raises(JobError, match=r"s3://nowhere/out\.jsonl: .*bucket does not exist"):
        await do(job_of(f"{s3}/good/in.jsonl", "s3://nowhere/out.jsonl", gateway))
    with pytest.raises(JobError, match=r"s4://b/in: .*s4"):
        surveyed(job_of("s4://b/in", f"{s3}/o", gateway))


def test_names_are_joined_unless_they_are_absolute() -> None:
    assert joined("s3://b/jobs/", "acme", "in.jsonl") == "s3://b/jobs/acme/in.jsonl"
    assert joined("/jobs", "acme", "/data/in.jsonl") == "/data/in.jsonl"
    assert joined("/jobs", "acme", "s3://b/in") == "s3://b/in"


def test_removing_a_missing_file_succeeds(s3: str, tmp_path: Path) -> None:
    remove(f"{s3}/none.partial")
    remove(str(tmp_path / "none.partial"))
    assert not os.listdir(tmp_path)
