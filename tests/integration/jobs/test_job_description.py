"""Every option of a job reaches the process that does it: from the client over CreateJob, the database and the document of the run."""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deployments.jobs import run_documents
from deployments.jobs.access import Access
from deployments.jobs.controller.commands import RunSettings, command_of
from neox_serve.cli.work_parameters import build_work, work_parameters
from neox_serve.client import calls
from neox_serve.client.options import EvaluateOptions, FinetuneOptions, JobOptions, QuantizeOptions
from neox_serve.core.jobs.evaluate import EvaluateWork
from neox_serve.core.jobs.finetune import FinetuneWork
from neox_serve.core.jobs.options import required_fields, with_file_names
from neox_serve.core.jobs.quantize import QuantizeWork
from neox_serve.core.jobs.rows import RowsWork
from neox_serve.core.jobs.work import WORK_TYPES, Work
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.gateway.handlers.batch import checked_work
from neox_serve.settings.engines import ModelSettings
from neox_serve.tenancy.database import open_database
from neox_serve.tenancy.job_store import JobStore
from neox_serve.v1 import batch_service_pb2 as pb
from neox_serve.wire.batch_messages import job_to_proto, work_from_proto
from tests.works import changed_works

ACME = Tenant("acme")
CLIENT_OPTIONS: dict[type, Any] = {
    RowsWork: JobOptions,
    FinetuneWork: FinetuneOptions,
    EvaluateWork: EvaluateOptions,
    QuantizeWork: QuantizeOptions,
}


def request_of(kind: str, work: Any) -> pb.CreateJobRequest:
    """What the client sends for the work."""
    required = required_fields(type(work))
    named: list[Any] = [getattr(work, field.name) for field in fields(work) if field.name in required]
    options: Any = {field.name: getattr(work, field.name) for field in fields(work) if field.name not in required}
    create: dict[type, Any] = {
        FinetuneWork: calls.create_finetune,
        EvaluateWork: calls.create_evaluation,
        QuantizeWork: calls.create_quantization,
        RowsWork: partial(calls.create_job, kind),
    }
    call = create[type(work)](*named, options)
    return pb.CreateJobRequest.FromString(call.request.SerializeToString())


@pytest.mark.parametrize(("kind", "field", "work"), list(changed_works()))
def test_every_option_arrives_at_the_process_with_its_value(kind: str, field: str, work: Work, tmp_path: Path) -> None:
    found_kind, found = checked_work(request_of(kind, work), 256, ACME, operator=True)
    store = JobStore(open_database(f"sqlite:///{tmp_path}/neox.db"))
    created = store.create("acme", found_kind, found)
    (stored,) = store.open_jobs()
    assert (stored.kind, stored.work) == (created.kind, created.work) == (kind, work)

    settings = RunSettings("/batch", tmp_path, Access("h:1"), model=ModelSettings(registry=tmp_path / "registry"))
    command = command_of(stored, settings)
    run_documents.write(command.run, tmp_path / "run.json")
    run: Any = run_documents.read(type(command.run), tmp_path / "run.json")
    assert run.work == with_file_names(work, lambda name: f"/batch/acme/{name}")
    assert getattr(run, "kind", kind) == kind


@pytest.mark.parametrize(("kind", "field", "work"), list(changed_works()))
def test_every_option_of_a_job_is_shown_to_clients(kind: str, field: str, work: Work, tmp_path: Path) -> None:
    store = JobStore(open_database(f"sqlite:///{tmp_path}/neox.db"))
    shown = job_to_proto(store.create("acme", kind, work))
    request = pb.CreateJobRequest()
    name = shown.WhichOneof("work")
    assert name is not None
    getattr(request, name).CopyFrom(getattr(shown, name))
    assert work_from_proto(request) == (kind, work)


@pytest.mark.parametrize("work_type", CLIENT_OPTIONS)
def test_client_has_every_option_of_the_work(work_type: type) -> None:
    options = CLIENT_OPTIONS[work_type].__annotations__.keys() - {"request_id", "timeout_s"}
    assert options == {field.name for field in fields(work_type)} - required_fields(work_type)


@pytest.mark.parametrize(("kind", "field", "work"), list(changed_works()))
def test_command_line_has_every_option_of_the_work(kind: str, field: str, work: Work) -> None:
    parameters = {parameter.name: parameter for parameter in work_parameters(WORK_TYPES[kind])}
    assert parameters.keys() == {each.name for each in fields(work)}
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    assert required == required_fields(type(work))
    values = {name: _as_text(name, getattr(work, name)) for name in parameters}
    assert build_work(WORK_TYPES[kind], values) == work


def _as_text(name: str, value: Any) -> Any:
    """The value as typer passes it."""
    if name == "options":
        return '{"max_tokens": 5, "stop": ["\\n"], "temperature": 0.25}' if value else "{}"
    return list(value) if isinstance(value, tuple) else value


def test_job_whose_document_is_of_another_version_is_left_out(tmp_path: Path) -> None:
    from sqlalchemy import update

    from neox_serve.tenancy.tables import batch_jobs

    database = open_database(f"sqlite:///{tmp_path}/neox.db")
    store = JobStore(database)
    newer, other = (store.create("acme", "embed", RowsWork("in", f"out{number}")) for number in range(2))
    with database.begin() as connection:
        where = batch_jobs.c.job_id == newer.job_id
        connection.execute(update(batch_jobs).where(where).values(work={"version": 2, "kind": "embed", "work": {}}))
    assert store.open_jobs() == [replace(other)]
