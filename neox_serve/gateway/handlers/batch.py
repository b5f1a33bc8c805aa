"""BatchService: creates, shows, watches and cancels the batch jobs of the caller's tenant.

The jobs are rows of the database. The job controller, beside the router, runs what is created here.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath

from neox_serve.core.jobs import document
from neox_serve.core.jobs.evaluate import EvaluateWork
from neox_serve.core.jobs.finetune import ADAPTER_ALLOWED, FinetuneWork
from neox_serve.core.jobs.job import Job
from neox_serve.core.jobs.options import FileKind, Option, file_name, options_of, problems, required_fields
from neox_serve.core.jobs.rows import EMBED, RowsWork
from neox_serve.core.jobs.work import Work
from neox_serve.core.tenancy.tenants import Role, Tenant
from neox_serve.gateway.requests.served import Served
from neox_serve.gateway.requests.validation import REQUEST_ID_ALLOWED, is_request_id
from neox_serve.gateway.requests.violations import Violations
from neox_serve.gateway.server.calls import Call, StreamWriter
from neox_serve.gateway.server.in_flight import draining_error
from neox_serve.model.adapter_names import registered_name
from neox_serve.tenancy.job_store import JobStore
from neox_serve.v1 import batch_service_pb2 as pb
from neox_serve.wire import admin_messages
from neox_serve.wire import batch_messages as wire

_OPERATORS = frozenset({Role.OPERATOR, Role.ADMIN})
_MAX_NAME_CHARACTERS = 1_024
_MAX_OPTIONS_CHARACTERS = 65_536
_MAX_OPTIONS_DEPTH = 16
_WATCH_INTERVAL_S = 0.5


class Batch:
    """Handles BatchService's calls. All methods raise ServeError."""

    def __init__(self, store: JobStore, served: Served, draining: Callable[[], bool]) -> None:
        """`draining` returns whether this gateway is about to stop."""
        self._store = store
        self._served = served
        self._draining = draining

    async def create_job(self, call: Call, message: pb.CreateJobRequest) -> pb.CreateJobResponse:
        """Creates a job, or finds the tenant's job with the same request_id."""
        job = await asyncio.to_thread(self._create, call, message)
        return pb.CreateJobResponse(job=wire.job_to_proto(job))

    async def get_job(self, call: Call, message: pb.GetJobRequest) -> pb.GetJobResponse:
        """Returns a job."""
        return pb.GetJobResponse(job=wire.job_to_proto(await self._job(call, message.job_id)))

    async def list_jobs(self, call: Call, message: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """Returns a page of jobs. The page token is the last job id of the page before."""
        size = admin_messages.page_size(message.page_size)
        jobs = await asyncio.to_thread(self._store.page, call.tenant.name, size + 1, message.page_token)
        shown = [wire.job_to_proto(job) for job in jobs[:size]]
        return pb.ListJobsResponse(jobs=shown, next_page_token=shown[-1].job_id if len(jobs) > size else "")

    async def cancel_job(self, call: Call, message: pb.CancelJobRequest) -> pb.CancelJobResponse:
        """Requests the cancellation of a job."""
        job = await asyncio.to_thread(self._store.request_cancel, call.tenant.name, message.job_id)
        return pb.CancelJobResponse(job=wire.job_to_proto(job))

    async def read_job_log(self, call: Call, message: pb.ReadJobLogRequest) -> pb.ReadJobLogResponse:
        """Returns the end of the log of the job's last run."""
        log = await asyncio.to_thread(self._store.log, call.tenant.name, message.job_id)
        return pb.ReadJobLogResponse(text=log.text, start=log.start, run_id=log.run_id)

    async def watch_job(self, call: Call, message: pb.WatchJobRequest, writer: StreamWriter) -> None:
        """Writes a job now and after every change, until it has ended."""
        clock = asyncio.get_running_loop().time
        shown: Job | None = None
        while True:
            job = await self._job(call, message.job_id)
            if job != shown:
                await writer.write(pb.WatchJobResponse(job=wire.job_to_proto(job)).SerializeToString())
                shown = job
            if job.state.ended:
                return
            if self._draining():
                raise draining_error()
            if clock() >= call.deadline.ends_at_s:
                raise call.deadline.exceeded()
            await asyncio.sleep(min(_WATCH_INTERVAL_S, max(0.0, call.deadline.ends_at_s - clock())))

    def _create(self, call: Call, message: pb.CreateJobRequest) -> Job:
        tenant = call.tenant
        kind, work = checked_work(message, self._served.max_adapter_rank, tenant, operator=_is_operator(call))
        if not self._store.has(tenant.name, message.request_id):
            check_possible(work, self._served, tenant)
        return self._store.create(tenant.name, kind, work, message.request_id)

    async def _job(self, call: Call, job_id: str) -> Job:
        return await asyncio.to_thread(self._store.job, call.tenant.name, job_id)


def checked_work(message: pb.CreateJobRequest, max_adapter_rank: int, tenant: Tenant, *, operator: bool) -> tuple[str, Work]:
    """Returns the kind and the work of a request. Raises INVALID_ARGUMENT with a violation for every wrong field."""
    wrong = Violations()
    if message.request_id:
        wrong.require(is_request_id(message.request_id), "request_id", message.request_id, REQUEST_ID_ALLOWED)
    if message.WhichOneof("work") in {"rows", None}:
        wrong.require(message.rows.work in wire.ROW_KINDS, "rows.work", message.rows.work, "ROW_WORK_GENERATE or ROW_WORK_EMBED")
        _check_options_json(wrong, message.rows)
    kind, work = wire.work_from_proto(message)
    field = message.WhichOneof("work") or "rows"
    _check_files(wrong, field, work, operator=operator)
    if isinstance(work, FinetuneWork):
        work = _with_registered_name(wrong, work, tenant, operator=operator)
    _check_fields(wrong, field, work, operator=operator)
    if isinstance(work, FinetuneWork):
        allowed = f"at most {max_adapter_rank}, the largest rank that this cluster serves (max_lora_rank)"
        wrong.require(work.rank <= max_adapter_rank, "finetune.rank", work.rank, allowed)
    if isinstance(work, RowsWork) and work.into:
        wrong.require(kind == EMBED, "rows.into", work.into, "absent unless rows.work is ROW_WORK_EMBED")
    wrong.raise_if_any()
    return kind, work


def check_possible(work: Work, served: Served, tenant: Tenant) -> None:
    """Checks that the cluster can do the work as it is set up now. Raises INVALID_ARGUMENT or UNKNOWN_ADAPTER."""
    wrong = Violations()
    if isinstance(work, FinetuneWork):
        if not served.registry.exists:
            wrong.add("finetune", "this cluster has no registry of adapters (model.registry), so it could not serve the adapter")
        elif work.adapter in served.adapters or served.registry.find(work.adapter) is not None:
            wrong.add("finetune.adapter", f"{work.adapter!r} exists already; choose another name")
    elif isinstance(work, EvaluateWork):
        served.seen_by(tenant).check_adapter(work.adapter)
    wrong.raise_if_any()


def _is_operator(call: Call) -> bool:
    return bool(call.principal.roles & _OPERATORS)


def _with_registered_name(wrong: Violations, work: FinetuneWork, tenant: Tenant, *, operator: bool) -> FinetuneWork:
    """Returns the work with the adapter's name in the registry, which starts with the tenant's name unless an operator asks."""
    if "/" in work.adapter:
        wrong.add("finetune.adapter", f"got {work.adapter!r}, must be {ADAPTER_ALLOWED}; the cluster adds the tenant's name")
        return work
    return replace(work, adapter=registered_name(tenant.name, work.adapter, for_all=operator))


def _check_fields(wrong: Violations, field: str, work: Work, *, operator: bool) -> None:
    """Checks every field by its own checks, once, and that only operators set the fields that are for operators."""
    found = {violation.field for violation in wrong.found}
    for problem in problems(work):
        if (path := wire.proto_path(field, problem.field)) not in found:
            wrong.require(False, path, problem.value, problem.allowed)
    for name, option in options_of(work).items():
        value = getattr(work, name)
        wrong.require(
            operator or not option.operator_only or not value, wire.proto_path(field, name), value, "absent; only operators may set it"
        )


def _check_files(wrong: Violations, field: str, work: Work, *, operator: bool) -> None:
    """Checks that the caller may use every file and that no two fields name the same file."""
    required, seen = required_fields(type(work)), dict[str, str]()
    for name, option in options_of(work).items():
        path = wire.proto_path(field, name)
        try:
            file = file_name(work, name)
        except ValueError as error:
            wrong.add(path, str(error))
            continue
        if file or (option.file and name in required):
            _check_file(wrong, path, file, option, operator=operator)
        if file in seen:
            wrong.add(path, f"{file!r} is also {seen[file]}; each field needs a file of its own")
        elif file:
            seen[file] = path


def _check_file(wrong: Violations, path: str, file: str, option: Option, *, operator: bool) -> None:
    if option.file is FileKind.LOCAL_FOLDER and "://" in file:
        wrong.add(path, f"{file!r} is a URL; it must be a folder, because engines read weights from a folder")
    else:
        _check_name(wrong, path, file, operator=operator)


def _check_name(wrong: Violations, field: str, name: str, *, operator: bool) -> None:
    allowed = f"a name of 1 to {_MAX_NAME_CHARACTERS} characters in the tenant's folder, without '..'"
    path = PurePosixPath(name)
    inside = operator or not (path.is_absolute() or "://" in name)
    good = 0 < len(name) <= _MAX_NAME_CHARACTERS and "\0" not in name and ".." not in path.parts and bool(path.name)
    wrong.require(inside and good, field, name, allowed if not operator else f"{allowed}, or an absolute path or URL")


def _check_options_json(wrong: Violations, rows: pb.RowsWork) -> None:
    """Checks `options_json`, and clears it if it cannot be used."""
    problem = _options_problem(rows.options_json)
    if problem:
        wrong.add("rows.options_json", problem)
        rows.ClearField("options_json")


def _options_problem(text: str) -> str:
    """Returns why a text cannot be used as options of rows; "" if it can."""
    if len(text) > _MAX_OPTIONS_CHARACTERS:
        return f"has {len(text)} characters; at most {_MAX_OPTIONS_CHARACTERS} are allowed"
    try:
        options = json.loads(text or "{}")
        json.dumps(options, allow_nan=False)
        document.check_depth(options, _MAX_OPTIONS_DEPTH)
    except (ValueError, RecursionError) as error:
        return f"is not usable JSON: {error}"
    return "" if isinstance(options, dict) else "must be a JSON object"
