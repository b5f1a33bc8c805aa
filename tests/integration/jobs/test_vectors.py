"""Embed runs that write to real vector databases: Milvus in a file, a Milvus server, and LanceDB."""

import asyncio
import gc
import io
import json
import warnings
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deployments.jobs.bulk.run import BulkRun, parse_arguments
from deployments.jobs.bulk.runner import run, survey
from deployments.jobs.bulk.vector_stores import VectorRow, open_store
from deployments.jobs.failures import JobError
from neox_serve.core.errors import invalid
from neox_serve.core.jobs.vector_target import VectorTarget
from tests.fakes.scripted_gateway import ScriptedGateway
from tests.run_arguments import arguments_of, bulk_run

KINDS = ["milvus", "milvus-server", "lancedb"]
_NUMBERS = count(1)


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with ScriptedGateway() as scripted:
        yield scripted


@pytest.fixture(scope="module")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with its own storage and ports."""
    from milvus import MilvusServer

    server = MilvusServer()
    server.set_base_dir(str(tmp_path_factory.mktemp("milvus")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the sockets open with which it has looked for free ports
        server.start()
        gc.collect()
    yield f"http://127.0.0.1:{server.listen_port}"
    server.stop()


@pytest.fixture
def into(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> VectorTarget:
    """A collection that does not exist yet."""
    if kind == "milvus-server":
        return VectorTarget("milvus", request.getfixturevalue("milvus_server"), f"words_{next(_NUMBERS)}")
    return VectorTarget(kind, str(tmp_path / "vectors.db"), "words")


async def do(job: BulkRun) -> str:
    said = io.StringIO()
    await asyncio.wait_for(run(job, survey(job.kind, job.work), Console(file=said, width=200)), 60)
    return said.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
async def test_vectors_of_a_repeated_run_are_found_once(into: VectorTarget, ending: str, tmp_path: Path, gateway: ScriptedGateway) -> None:
    gateway.script("Embed", invalid("inputs[0]", "too strange"))
    rows = [{"text": "strange"}, {"text": "x", "id": "one"}, {"text": "y" * 40, "id": "forty"}, {"text": "z" * 3}]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source, output = str(tmp_path / "in.jsonl"), str(tmp_path / f"out.{ending}")
    job = bulk_run("embed", source, output, gateway.address, "job-1", concurrency=1, into=str(into))
    for _ in range(2):
        assert "3 vectors in" in await do(job)
    for _ in range(2):
        with open_store(into) as store:
            found = store.search([40.0, 1.0], 10)
    assert [(row.id, row.text) for row in found] == [("forty", "y" * 40), ("4", "zzz"), ("one", "x")]
    assert found[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert found[2].similarity == pytest.approx(41 / np.hypot(40, 1) / np.hypot(1, 1), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_search_agrees_with_brute_force(into: VectorTarget) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((1_200, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    hits = 0
    with open_store(into) as store:
        assert store.write(VectorRow(str(row), "", vector.tolist()) for row, vector in enumerate(vectors)) == 1_200
        for asked in rng.standard_normal((20, 32)).astype(np.float32):
            wanted = {str(row) for row in np.argsort(-(vectors @ asked))[:10]}
            hits += len(wanted & {row.id for row in store.search(asked.tolist(), 10)})
    assert hits / 200 >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_collection_that_is_missing_or_of_another_size_is_refused(into: VectorTarget) -> None:
    with pytest.raises(OSError, match=f"has no collection '{into.collection}'"), open_store(into) as store:
        store.search([1.0, 2.0], 3)
    with open_store(into) as store:
        store.write([VectorRow("a", "", [1.0, 2.0])])
    with pytest.raises(OSError, match=r"(?i)dim|length|size"), open_store(into) as store:
        store.write([VectorRow("a", "", [1.0, 2.0, 3.0])])


def test_search_finds_the_latest_write(milvus_server: str) -> None:
    into = VectorTarget("milvus", milvus_server, "fresh")
    for number in range(3):
        with open_store(into) as store:
            store.write([VectorRow("a", f"text {number}", [1.0, float(number)])])
            assert [(row.id, row.text) for row in store.search([1.0, 0.0], 5)] == [("a", f"text {number}")]


def test_unreachable_server_is_named() -> None:
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9"), open_store(VectorTarget("milvus", "http://127.0.0.1:9", "words")):
        pass


async def test_database_that_cannot_be_written_is_named(tmp_path: Path, gateway: ScriptedGateway) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "file").write_text("")
    into = VectorTarget("lancedb", str(tmp_path / "file" / "below"), "words")
    job = bulk_run("embed", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), gateway.address, "job-1", into=str(into))
    with pytest.raises(JobError, match=r"lancedb:.*#words: "):
        await do(job)


@pytest.mark.parametrize("text", ["", "milvus:a.db", "milvus:#a", "qdrant:a#b", "lancedb:a#b-c"])
def test_invalid_target_is_refused_with_the_allowed_forms(text: str) -> None:
    with pytest.raises(ValueError, match="must be milvus:FILE#COLLECTION"):
        VectorTarget.parse(text)


def test_target_is_only_accepted_by_embed() -> None:
    job = bulk_run("embed", "/i", "/o", "h:1", "j", into="milvus:http://h:19530#words")
    assert parse_arguments(arguments_of(job)) == job
    with pytest.raises(SystemExit):
        parse_arguments(["generate", *arguments_of(job)[1:]])
