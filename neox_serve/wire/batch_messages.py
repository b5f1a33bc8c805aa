"""BatchService's messages <-> jobs. What comes in has been checked before."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from google.protobuf.timestamp_pb2 import Timestamp

from neox_serve.core.jobs.evaluate import AS_TASKS_HAVE_IT, EvaluateWork
from neox_serve.core.jobs.finetune import FinetuneWork
from neox_serve.core.jobs.job import Job, JobState, RowsWork
from neox_serve.core.jobs.quantize import QuantizeWork
from neox_serve.v1 import batch_service_pb2 as pb
from neox_serve.wire.admin_messages import timestamp
from neox_serve.wire.public_messages import duration

KINDS: Mapping[int, str] = {pb.ROW_WORK_GENERATE: "generate", pb.ROW_WORK_EMBED: "embed"}
"""Protobuf -> core."""
_KIND_NUMBERS: Mapping[str, pb.RowWork.ValueType] = {"generate": pb.ROW_WORK_GENERATE, "embed": pb.ROW_WORK_EMBED}
_STATES: Mapping[JobState, pb.JobState.ValueType] = {
    JobState.QUEUED: pb.JOB_STATE_QUEUED,
    JobState.RUNNING: pb.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: pb.JOB_STATE_SUCCEEDED,
    JobState.FAILED: pb.JOB_STATE_FAILED,
    JobState.CANCELLED: pb.JOB_STATE_CANCELLED,
}


def job_to_proto(job: Job) -> pb.Job:
    """As clients see it."""
    progress = job.progress
    message = pb.Job(
        job_id=job.job_id,
        request_id=job.request_id,
        state=_STATES[job.state],
        progress=pb.JobProgress(
            total_rows=progress.total,
            completed_rows=progress.done,
            error_rows=progress.errors,
            tokens=progress.tokens,
            prompt_tokens=progress.prompt_tokens,
        ),
        message=job.message,
        cancel_requested=job.cancel_requested,
        runs=job.runs,
        run_id=job.run_id,
        create_time=timestamp(job.created_s),
        start_time=_moment(job.started_s),
        end_time=_moment(job.ended_s),
    )
    if isinstance(job.work, FinetuneWork):
        message.finetune.CopyFrom(pb.FinetuneWork(**asdict(job.work)))
    elif isinstance(job.work, EvaluateWork):
        shown = {name: value for name, value in asdict(job.work).items() if (name, value) != ("shots", AS_TASKS_HAVE_IT)}
        message.evaluate.CopyFrom(pb.EvaluateWork(**shown))
    elif isinstance(job.work, QuantizeWork):
        message.quantize.CopyFrom(pb.QuantizeWork(**asdict(job.work)))
    else:
        message.rows.CopyFrom(_rows_to_proto(job.kind, job.work))
    return message


def finetune_from_proto(message: pb.FinetuneWork) -> FinetuneWork:
    """What is absent has its default. Whether it can be done, `FinetuneWork.problems` says."""
    given = {field.name: value for field, value in message.ListFields()}
    return FinetuneWork.from_values({**asdict(FinetuneWork(message.input, message.adapter)), **given})


def evaluate_from_proto(message: pb.EvaluateWork) -> EvaluateWork:
    """Likewise."""
    given = {field.name: value for field, value in message.ListFields()}
    return EvaluateWork.from_values({**asdict(EvaluateWork((), "")), **given})


def quantize_from_proto(message: pb.QuantizeWork) -> QuantizeWork:
    """Likewise."""
    given = {field.name: value for field, value in message.ListFields()}
    return QuantizeWork.from_values({**asdict(QuantizeWork("", "", "", "")), **given})


def _rows_to_proto(kind: str, work: RowsWork) -> pb.RowsWork:
    return pb.RowsWork(
        work=_KIND_NUMBERS[kind],
        input=work.input,
        output=work.output,
        options_json=json.dumps(work.options, sort_keys=True) if work.options else "",
        rejects=work.rejects,
        concurrency=work.concurrency,
        max_stall=duration(work.max_stall_s),
        into=work.into,
        own_engine=work.own_engine,
    )


def _moment(at_s: float | None) -> Timestamp | None:
    return None if at_s is None else timestamp(at_s)
