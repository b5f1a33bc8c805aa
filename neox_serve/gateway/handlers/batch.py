"""BatchService: jobs in the database. What is entered here, the job controller has run."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from neox_serve.core.jobs.evaluate import EVALUATE, EvaluateWork
from neox_serve.core.jobs.finetune import ADAPTER_ALLOWED, FINETUNE, FinetuneWork
from neox_serve.core.jobs.job import Job, RowsWork, Work
from neox_serve.core.jobs.quantize import QUANTIZE, QuantizeWork
from neox_serve.core.jobs.vector_target import VectorTarget
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
_DEFAULT_CONCURRENCY, _MAX_CONCURRENCY = 32, 1024
_DEFAULT_MAX_STALL_S, _LONGEST_STALL_S = 600.0, 7 * 86_400.0
_MAX_NAME_CHARACTERS = 1_024
_MAX_OPTIONS_CHARACTERS = 65_536
_WATCH_INTERVAL_S = 0.5


class Batch:
    """Answers for the caller's tenant. All raise ServeError. draining: whether this gateway is about to stop."""

    def __init__(self, store: JobStore, served: Served, draining: Callable[[], bool]) -> None:
        self._store = store
        self._served = served
        self._draining = draining

    async def create_job(self, call: Call, message: pb.CreateJobRequest) -> pb.CreateJobResponse:
        """A job of the tenant's, new or found by its request_id."""
        job = await asyncio.to_thread(self._create, call, message)
        return pb.CreateJobResponse(job=wire.job_to_proto(job))

    async def get_job(self, call: Call, message: pb.GetJobRequest) -> pb.GetJobResponse:
        """One job."""
        return pb.GetJobResponse(job=wire.job_to_proto(await self._job(call, message.job_id)))

    async def list_jobs(self, call: Call, message: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """A page of jobs; its token is the last id of the page before."""
        size = admin_messages.page_size(message.page_size)
        jobs = await asyncio.to_thread(self._store.page, call.tenant.name, size + 1, message.page_token)
        shown = [wire.job_to_proto(job) for job in jobs[:size]]
        return pb.ListJobsResponse(jobs=shown, next_page_token=shown[-1].job_id if len(jobs) > size else "")

    async def cancel_job(self, call: Call, message: pb.CancelJobRequest) -> pb.CancelJobResponse:
        """Asks for a job's end."""
        job = await asyncio.to_thread(self._store.ask_cancel, call.tenant.name, message.job_id)
        return pb.CancelJobResponse(job=wire.job_to_proto(job))

    async def read_job_log(self, call: Call, message: pb.ReadJobLogRequest) -> pb.ReadJobLogResponse:
        """What the job's last run has written."""
        log = await asyncio.to_thread(self._store.log, call.tenant.name, message.job_id)
        return pb.ReadJobLogResponse(text=log.text, start=log.start, run_id=log.run_id)

    async def watch_job(self, call: Call, message: pb.WatchJobRequest, writer: StreamWriter) -> None:
        """A job at every change, to its end."""
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
    """What the job is to do, and the kind of that. Raises INVALID_ARGUMENT naming every wrong field."""
    wrong = Violations()
    if message.request_id:
        wrong.require(is_request_id(message.request_id), "request_id", message.request_id, REQUEST_ID_ALLOWED)
    work: Work
    if message.WhichOneof("work") == "finetune":
        kind, work = FINETUNE, _finetune(wrong, message.finetune, max_adapter_rank, tenant, operator=operator)
    elif message.WhichOneof("work") == "evaluate":
        kind, work = EVALUATE, _evaluate(wrong, message.evaluate, operator=operator)
    elif message.WhichOneof("work") == "quantize":
        kind, work = QUANTIZE, _quantize(wrong, message.quantize, operator=operator)
    else:
        kind, work = wire.KINDS.get(message.rows.work, ""), _rows(wrong, message.rows, operator=operator)
    wrong.raise_if_any()
    return kind, work


def check_possible(work: Work, served: Served, tenant: Tenant) -> None:
    """Whether a new job could do it, as the cluster is now. Raises INVALID_ARGUMENT, UNKNOWN_ADAPTER."""
    wrong = Violations()
    if isinstance(work, FinetuneWork):
        if not served.registry.exists:
            wrong.add("finetune", "this cluster has no registry of adapters (model.registry), so that none could be served")
        elif work.adapter in served.adapters or served.registry.find(work.adapter) is not None:
            wrong.add("finetune.adapter", f"{work.adapter!r} is there already; name another one")
    elif isinstance(work, EvaluateWork):
        served.seen_by(tenant).check_adapter(work.adapter)
    wrong.raise_if_any()


def _is_operator(call: Call) -> bool:
    return bool(call.principal.roles & _OPERATORS)


def _rows(wrong: Violations, rows: pb.RowsWork, *, operator: bool) -> RowsWork:
    wrong.require(rows.work in wire.KINDS, "rows.work", rows.work, "ROW_WORK_GENERATE or ROW_WORK_EMBED")
    files = {"rows.input": rows.input, "rows.output": rows.output, "rows.rejects": rows.rejects}
    _check_files(wrong, files, operator=operator)
    concurrency = rows.concurrency or _DEFAULT_CONCURRENCY
    wrong.require(concurrency <= _MAX_CONCURRENCY, "rows.concurrency", concurrency, f"in [1, {_MAX_CONCURRENCY}]")
    max_stall_s = rows.max_stall.seconds + rows.max_stall.nanos / 1e9 if rows.HasField("max_stall") else _DEFAULT_MAX_STALL_S
    wrong.require(0 < max_stall_s <= _LONGEST_STALL_S, "rows.max_stall", f"{max_stall_s:g} s", f"in (0, {_LONGEST_STALL_S:g}] s")
    options = _options(wrong, rows.options_json)
    wrong.require(operator or not rows.own_engine, "rows.own_engine", rows.own_engine, "absent but for operators")
    if rows.into:
        _check_target(wrong, rows, operator=operator)
    return RowsWork(rows.input, rows.output, options, rows.rejects, concurrency, max_stall_s, rows.into, rows.own_engine)


def _finetune(wrong: Violations, message: pb.FinetuneWork, max_rank: int, tenant: Tenant, *, operator: bool) -> FinetuneWork:
    files = {"finetune.input": message.input, "finetune.rejects": message.rejects}
    _check_files(wrong, files, operator=operator)
    work = wire.finetune_from_proto(message)
    if "/" in work.adapter:
        wrong.add("finetune.adapter", f"got {work.adapter!r}, must be {ADAPTER_ALLOWED}; the tenant's name is put before it")
    else:
        work = replace(work, adapter=registered_name(tenant.name, work.adapter, for_all=operator))
        for name, value, allowed in work.problems():
            wrong.require(False, f"finetune.{name}", value, allowed)
    wrong.require(work.rank <= max_rank, "finetune.rank", work.rank, f"at most {max_rank}, which this cluster serves (max_lora_rank)")
    return work


def _evaluate(wrong: Violations, message: pb.EvaluateWork, *, operator: bool) -> EvaluateWork:
    _check_files(wrong, {"evaluate.output": message.output}, operator=operator)
    work = wire.evaluate_from_proto(message)
    for name, value, allowed in work.problems():
        wrong.require(False, f"evaluate.{name}", value, allowed)
    return work


def _quantize(wrong: Violations, message: pb.QuantizeWork, *, operator: bool) -> QuantizeWork:
    files = {"output": message.output, "calibration": message.calibration, "held_out": message.held_out}
    _check_files(wrong, {f"quantize.{name}": file for name, file in files.items()}, operator=operator)
    work = wire.quantize_from_proto(message)
    for name, value, allowed in work.problems():
        wrong.require(False, f"quantize.{name}", value, allowed)
    wrong.require("://" not in work.output, "quantize.output", work.output, "a folder, since engines read weights from one")
    wrong.require(operator or not work.serve_tokens, "quantize.serve_tokens", work.serve_tokens, "absent but for operators")
    return work


def _check_files(wrong: Violations, files: Mapping[str, str], *, operator: bool) -> None:
    """Each is in its place, and no two are the same. files: names by field; that of bad rows may be absent."""
    seen: dict[str, str] = {}
    for field, name in files.items():
        if name or not field.endswith("rejects"):
            _check_name(wrong, field, name, operator=operator)
        if name in seen:
            wrong.add(field, f"{name!r} is {seen[name]} too")
        elif name:
            seen[name] = field


def _check_name(wrong: Violations, field: str, name: str, *, operator: bool) -> None:
    allowed = f"a name of 1 to {_MAX_NAME_CHARACTERS} characters in the tenant's folder, without '..'"
    path = PurePosixPath(name)
    inside = operator or not (path.is_absolute() or "://" in name)
    good = 0 < len(name) <= _MAX_NAME_CHARACTERS and "\0" not in name and ".." not in path.parts and bool(path.name)
    wrong.require(inside and good, field, name, allowed if not operator else f"{allowed}, or an absolute path or URL")


def _check_target(wrong: Violations, rows: pb.RowsWork, *, operator: bool) -> None:
    try:
        _check_name(wrong, "rows.into", VectorTarget.parse(rows.into).place, operator=operator)
    except ValueError as error:
        wrong.add("rows.into", str(error))
    wrong.require(rows.work == pb.ROW_WORK_EMBED, "rows.into", rows.into, "absent but for ROW_WORK_EMBED")


def _options(wrong: Violations, text: str) -> Any:
    if len(text) > _MAX_OPTIONS_CHARACTERS:
        wrong.add("rows.options_json", f"has {len(text)} characters, may have {_MAX_OPTIONS_CHARACTERS}")
        return {}
    try:
        options = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        wrong.add("rows.options_json", f"is not JSON: {error}")
        return {}
    wrong.require(isinstance(options, dict), "rows.options_json", text, "a JSON object")
    return options
