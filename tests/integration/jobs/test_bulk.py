"""Bulk runs against a gateway with scripted responses."""

import asyncio
import io
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deployments.jobs.bulk.__main__ import main
from deployments.jobs.bulk.row_files import output_of, partial_of
from deployments.jobs.bulk.rows import GENERATE
from deployments.jobs.bulk.run import MODULE, BulkRun, parse_arguments
from deployments.jobs.bulk.runner import run, survey
from deployments.jobs.failures import JobError
from deployments.jobs.progress import JobProgress, duration
from neox_serve.core.errors import Reason, ServeError, invalid
from neox_serve.v1 import generation_pb2, inference_service_pb2
from tests.fakes.scripted_gateway import ScriptedGateway
from tests.run_arguments import arguments_of, bulk_run, command_of


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with ScriptedGateway() as scripted:
        yield scripted


def job_of(folder: Path, gateway: ScriptedGateway, rows: list[Any], **options: Any) -> BulkRun:
    """Returns a run over these rows, each a JSON value or a verbatim line."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "in.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return bulk_run("generate", str(folder / "in.jsonl"), str(folder / "out.jsonl"), gateway.address, "job-1", **options)


async def do(job: BulkRun) -> tuple[JobProgress, str]:
    """Does the run; returns its counts and what it printed."""
    said = io.StringIO()
    progress = await asyncio.wait_for(run(job, survey(job.kind, job.work), Console(file=said, width=200)), 30)
    return progress, said.getvalue()


def answers(job: BulkRun) -> list[Any]:
    return lines_of(job.work.output)


def place(job: BulkRun) -> Path:
    return Path(job.work.output)


def partial(job: BulkRun) -> Path:
    return Path(partial_of(job.work.output))


def lines_of(file: str | Path) -> list[Any]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


async def test_run_completes_every_row_in_input_order(tmp_path: Path, gateway: ScriptedGateway) -> None:
    async def late() -> None:
        await asyncio.sleep(0.2)

    gateway.script("Generate", late)
    rows = [{"prompt": f"p{n}", "id": f"row {n}", "max_tokens": n} for n in range(1, 30)]
    job = job_of(tmp_path, gateway, rows, options={"temperature": 0.5, "max_tokens": 99}, concurrency=4)
    progress, said = await do(job)
    assert [answer["row"] for answer in answers(job)] == list(range(1, 30))
    assert [answer["completions"][0]["text"] for answer in answers(job)] == [f"P{n}" for n in range(1, 30)]
    assert [answer["id"] for answer in answers(job)] == [row["id"] for row in rows]
    requests = gateway.requests("Generate")
    assert {request.request_id for request in requests} == {f"job-1:{n}" for n in range(1, 30)}
    assert {request.parameters.sampling.temperature for request in requests} == {0.5}
    assert sorted(request.parameters.stopping.max_tokens for request in requests) == list(range(1, 30))
    assert (progress.done, progress.errors) == (29, 0)
    assert said.endswith("tok/s\n")
    assert "29 of 29 rows" in said


async def test_embed_run_completes_every_row_with_its_vector(tmp_path: Path, gateway: ScriptedGateway) -> None:
    rows = [{"text": "x" * n, "id": f"row {n}"} for n in range(1, 12)] + [{"text": "y", "pooling": "last"}]
    job = replace(job_of(tmp_path, gateway, rows, options={"pooling": "mean", "normalize": False}), kind="embed")
    progress, _ = await do(job)
    assert [answer["vector"] for answer in answers(job)] == [[len(row["text"]), 1.0] for row in rows]
    assert [answer.get("id") for answer in answers(job)] == [row.get("id") for row in rows]
    requests = {request.request_id: request for request in gateway.requests("Embed")}
    assert {request.priority for request in requests.values()} == {generation_pb2.PRIORITY_CLASS_BULK}
    assert {request.normalize for request in requests.values()} == {False}
    assert requests["job-1:12"].pooling == inference_service_pb2.POOLING_LAST
    assert requests["job-1:1"].pooling == inference_service_pb2.POOLING_MEAN
    assert (progress.done, progress.errors) == (12, 0)
    before = place(job).read_bytes()
    await do(job)
    assert (place(job).read_bytes(), len(gateway.requests("Embed"))) == (before, 12)


async def test_embed_run_refuses_rows_of_another_kind(tmp_path: Path, gateway: ScriptedGateway) -> None:
    job = replace(job_of(tmp_path, gateway, [{"prompt": "a"}, {"text": "b", "max_tokens": 3}]), kind="embed")
    with pytest.raises(JobError) as caught:
        await do(job)
    assert "line 1: unknown keys: prompt" in str(caught.value)
    assert "line 2: unknown keys: max_tokens" in str(caught.value)


async def test_run_limits_the_requests_in_flight(tmp_path: Path, gateway: ScriptedGateway) -> None:
    in_flight, most = 0, 0

    async def count() -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.02)
        in_flight -= 1

    gateway.script("Generate", *[count] * 20)
    await do(job_of(tmp_path, gateway, [{"prompt": "a"}] * 20, concurrency=3))
    assert most == 3


async def test_run_repeated_sends_no_requests(tmp_path: Path, gateway: ScriptedGateway) -> None:
    job = job_of(tmp_path, gateway, [{"prompt": "a"}, {"prompt": "b"}])
    await do(job)
    before = place(job).read_bytes()
    progress, _ = await do(job)
    assert len(gateway.received) == 2
    assert place(job).read_bytes() == before
    assert progress.done == 2


async def test_run_resumed_after_an_incomplete_line_completes_only_missing_rows(tmp_path: Path, gateway: ScriptedGateway) -> None:
    job = job_of(tmp_path, gateway, [{"prompt": letter} for letter in "abcd"], concurrency=1)
    await do(job)
    whole = place(job).read_bytes()
    place(job).unlink()
    partial(job).write_bytes(whole[: len(whole) // 2 + 5])
    gateway.received.clear()
    await do(job)
    assert place(job).read_bytes() == whole
    assert [request.request_id for request in gateway.requests("Generate")] == ["job-1:3", "job-1:4"]


async def test_run_with_bad_rows_sends_nothing_and_names_them(tmp_path: Path, gateway: ScriptedGateway) -> None:
    job = job_of(tmp_path, gateway, [{"prompt": "a"}, "{", {"prompt": "b", "top": 1}])
    with pytest.raises(JobError) as caught:
        await do(job)
    assert caught.value.exit_code == 2
    assert "2 bad and 1 good rows" in str(caught.value)
    assert "line 2: not JSON" in str(caught.value)
    assert "line 3: unknown keys: top" in str(caught.value)
    assert not gateway.received
    assert not place(job).exists()


async def test_run_with_a_rejects_file_completes_the_good_rows(tmp_path: Path, gateway: ScriptedGateway) -> None:
    job = job_of(tmp_path, gateway, ["{", {"prompt": "a"}], rejects=str(tmp_path / "bad.jsonl"))
    await do(job)
    assert [answer["row"] for answer in answers(job)] == [2]
    (bad,) = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert (bad["row"], bad["line"]) == (1, "{")


async def test_row_that_the_service_refuses_is_completed_with_its_error(tmp_path: Path, gateway: ScriptedGateway) -> None:
    gateway.script("Generate", invalid("prompts[0]", "too strange"))
    job = job_of(tmp_path, gateway, [{"prompt": "a"}, {"prompt": "b"}], concurrency=1)
    progress, said = await do(job)
    assert [answer.get("error", {}).get("reason") for answer in answers(job)] == ["INVALID_ARGUMENT", None]
    assert progress.errors == 1
    assert "1 with an error" in said


async def test_run_waits_for_a_busy_cluster(tmp_path: Path, gateway: ScriptedGateway) -> None:
    gateway.script("Generate", *[ServeError(Reason.OVERLOADED, "busy", retry_after_s=0.01)] * 20)
    progress, _ = await do(job_of(tmp_path, gateway, [{"prompt": "a"}]))
    assert (progress.done, progress.errors) == (1, 0)


async def test_run_that_stalls_fails_and_can_be_resumed(tmp_path: Path, gateway: ScriptedGateway) -> None:
    gateway.script("Generate", gateway.hang)
    job = job_of(tmp_path, gateway, [{"prompt": "a"}], max_stall_s=0.2)
    with pytest.raises(JobError, match=r"no row completed for 0\.2 s") as caught:
        await do(job)
    assert caught.value.exit_code == 1
    await asyncio.wait_for(gateway.cancelled.wait(), 20)
    assert (await do(job))[0].done == 1


async def test_run_that_the_service_refuses_stops_at_once(tmp_path: Path, gateway: ScriptedGateway) -> None:
    gateway.script("Generate", *[ServeError(Reason.UNKNOWN_MODEL, "no such model")] * 8)
    with pytest.raises(JobError, match="UNKNOWN_MODEL"):
        await do(job_of(tmp_path, gateway, [{"prompt": "a"}] * 8, concurrency=2))
    assert len(gateway.received) <= 4


async def test_run_with_a_revoked_key_fails_and_continues_with_a_new_one(tmp_path: Path, gateway: ScriptedGateway) -> None:
    key = tmp_path / "key"
    job = job_of(tmp_path, gateway, [{"prompt": "a"}, {"prompt": "b"}], concurrency=1, api_key_file=key)
    with pytest.raises(JobError, match="cannot read the API key") as unreadable:
        await do(job)
    assert unreadable.value.exit_code == 2
    key.write_text("old\n")
    gateway.script("Generate", _nothing, ServeError(Reason.UNAUTHENTICATED, "the API key is not valid"))
    with pytest.raises(JobError, match="row 2: UNAUTHENTICATED") as revoked:
        await do(job)
    assert revoked.value.exit_code == 1
    key.write_text("new\n")
    progress, _ = await do(job)
    assert progress.done == 2
    assert [call.metadata["authorization"] for call in gateway.received] == ["Bearer old", "Bearer old", "Bearer new"]


async def test_run_with_the_output_of_another_input_is_refused(tmp_path: Path, gateway: ScriptedGateway) -> None:
    await do(job_of(tmp_path, gateway, [{"prompt": "a"}]))
    with pytest.raises(JobError, match="row 1 was not made from"):
        await do(job_of(tmp_path, gateway, [{"prompt": "b"}]))


async def test_run_with_a_locked_output_waits_and_is_finally_refused(tmp_path: Path, gateway: ScriptedGateway) -> None:
    job = job_of(tmp_path, gateway, [{"prompt": "a"}])
    with output_of(GENERATE, job.work.output) as output:
        with pytest.raises(JobError, match="another job is writing"):
            await do(replace(job, work=replace(job.work, max_stall_s=0.1)))
        waiting = asyncio.create_task(do(job))
        await asyncio.sleep(0.1)
        output.append(b"torn")
    _, said = await waiting
    assert "waiting until it ends" in said
    assert [answer["row"] for answer in answers(job)] == [1]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
async def test_run_stopped_by_a_signal_and_restarted_completes_each_row_once(
    number: signal.Signals, exit_code: int, tmp_path: Path, gateway: ScriptedGateway
) -> None:
    gateway.script("Generate", *[_nothing] * 3, gateway.hang)
    job = job_of(tmp_path, gateway, [{"prompt": f"p{n}"} for n in range(6)])
    arguments = ["--input", job.work.input, "--output", job.work.output, "--address", job.access.address, "--concurrency", "1"]
    process = await start(arguments)
    await gateway.wait_for_calls(4)
    process.send_signal(number)
    _, said = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == exit_code
    assert (b"The same command continues from there." in said) == (exit_code > 0)
    assert not place(job).exists()
    assert [answer["row"] for answer in lines_of(partial(job))] == [1, 2, 3]

    again = await start(arguments)
    _, said = await asyncio.wait_for(again.communicate(), 20)
    assert again.returncode == 0
    assert b"Done: 6 rows" in said
    assert [answer["row"] for answer in answers(job)] == [1, 2, 3, 4, 5, 6]
    assert len(gateway.received) == 7


async def _nothing() -> None:
    """A scripted step that lets the call succeed."""


async def start(arguments: list[str]) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "deployments.jobs.bulk", "generate", *arguments]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)


async def test_run_with_the_unfinished_output_of_another_input_is_refused(tmp_path: Path, gateway: ScriptedGateway) -> None:
    job = job_of(tmp_path, gateway, [{"prompt": "a"}])
    partial(job).write_text('{"row": 1, "key": "other"}\n')
    with pytest.raises(JobError, match=r"out\.jsonl\.partial: row 1 was made from another input"):
        await do(job)


async def test_run_with_nothing_to_do_removes_the_partial_output(tmp_path: Path, gateway: ScriptedGateway) -> None:
    job = job_of(tmp_path, gateway, [{"prompt": "a"}])
    await do(job)
    partial(job).write_bytes(place(job).read_bytes())
    assert (await do(job))[0].done == 1
    assert not partial(job).exists()


async def test_input_that_changes_during_the_run_stops_it(tmp_path: Path, gateway: ScriptedGateway) -> None:
    job = job_of(tmp_path, gateway, [{"prompt": "a"}, {"prompt": "b"}])
    keys = survey(job.kind, job.work)
    for changed in ([{"prompt": "a"}, {"prompt": "c"}], [{"prompt": "a"}]):
        with pytest.raises(JobError, match=r"in\.jsonl changed while it was read"):
            await run(job_of(tmp_path, gateway, changed), keys, Console(file=io.StringIO()))
    assert not place(job).exists()


async def test_full_disk_stops_the_run_and_keeps_complete_rows(tmp_path: Path, gateway: ScriptedGateway) -> None:
    job = job_of(tmp_path, gateway, [{"prompt": f"p{number}"} for number in range(1, 41)], concurrency=1)
    limited = f"ulimit -f 4; exec {command_of(MODULE, job)}"  # blocks of 512 or 1,024 bytes, by the shell
    process = await asyncio.create_subprocess_exec("bash", "-c", limited, stderr=asyncio.subprocess.PIPE)
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2, said.decode()
    assert b"out.jsonl: File too large" in said
    assert b"Traceback" not in said
    before = len(lines_of(partial(job))) if partial(job).read_bytes().endswith(b"\n") else partial(job).read_bytes().count(b"\n")
    assert 1 <= before < 40
    gateway.received.clear()
    await do(job)
    assert [answer["row"] for answer in answers(job)] == list(range(1, 41))
    assert len(gateway.received) == 40 - before


def test_output_appears_when_it_is_published_in_order(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    lines = [json.dumps({"row": row, "key": "k"}).encode() + b"\n" for row in (3, 1, 2)]
    with output_of(GENERATE, str(path)) as output:
        for line in lines:
            output.append(line)
        assert not path.exists()
        output.publish()
    assert path.read_bytes() == lines[1] + lines[2] + lines[0]
    assert [*tmp_path.iterdir()] == [path]


def test_main_without_an_input_file_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--input", str(tmp_path / "none"), "--output", str(tmp_path / "out"), "--address", "a:1"]
    assert main(arguments) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--options", "[]"], ["--options", "{"], ["--concurrency", "0"]])
def test_wrong_arguments_exit_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["generate", "--input", "i", "--output", "o", "--address", "a", *wrong])
    assert caught.value.code == 2


def test_arguments_describe_every_field_of_a_run() -> None:
    least = bulk_run("generate", "/i n", "s3://b/o", "h:1", "j")
    alone = bulk_run("embed", "/i", "/o", "", "j", own_engine=True, config=Path("/engines.json"))
    assert parse_arguments(arguments_of(alone)) == alone
    whole = bulk_run(
        "generate",
        "/i n",
        "s3://b/o",
        "h:1",
        "j",
        concurrency=3,
        options={"stop": ["\n"]},
        rejects="/b",
        max_stall_s=1.5,
        tls_ca=Path("/tls/ca.pem"),
        tls_certificate=Path("/tls/certificate.pem"),
        tls_key=Path("/tls/key.pem"),
        api_key_file=Path("/k"),
        report=Path("/r"),
    )
    for job in (least, whole, replace(least, access=replace(least.access, tls=True))):
        assert parse_arguments(arguments_of(job)) == job


def test_progress_prints_rates_and_remaining_time_at_intervals() -> None:
    now_s, said = 0.0, io.StringIO()
    with JobProgress(Console(file=said, width=200), total=100, done=20, interval_s=5.0, clock=lambda: now_s) as progress:
        for now_s in (1.0, 2.0, 5.0, 6.0):  # noqa: B007 - the clock reads it
            progress.complete_row(tokens=10, error=False)
    assert said.getvalue().splitlines() == [
        "20 of 100 rows, 0.0 rows/s, 0 tok/s",
        "23 of 100 rows, 0.6 rows/s, 6 tok/s, 0:02:08 left",
        "24 of 100 rows, 0.7 rows/s, 7 tok/s, 0:01:54 left",
    ]


def test_duration_is_hours_minutes_seconds() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 3_725)] == ["0:00:00", "0:01:01", "1:02:05"]
