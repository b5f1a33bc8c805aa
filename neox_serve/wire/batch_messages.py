"""Conversion between BatchService's messages and the core types of jobs.

A work message and its core type have the same fields, so the conversion is generic. A field is converted by its protobuf type:

* a Duration `x` is the core field `x_s`, in seconds;
* a text `x_json` is the core field `x`, a JSON object;
* an enum is the kind of the job, which is not a field of its work;
* every other field has the same name and value. An absent field gets the default of the core type.
"""

import json
from collections.abc import Mapping
from typing import Any, get_origin, get_type_hints

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from neox_serve.core.jobs.job import Job, JobState
from neox_serve.core.jobs.options import required_fields
from neox_serve.core.jobs.rows import EMBED, GENERATE
from neox_serve.core.jobs.work import WORK_TYPES, Work
from neox_serve.v1 import batch_service_pb2 as pb
from neox_serve.wire.admin_messages import timestamp
from neox_serve.wire.public_messages import duration

ROW_KINDS: Mapping[int, str] = {pb.ROW_WORK_GENERATE: GENERATE, pb.ROW_WORK_EMBED: EMBED}
"""The kind of a job by the `work` field of its RowsWork."""

_JSON_SUFFIX = "_json"
_SECONDS_SUFFIX = "_s"
_ROWS = "rows"
_ROW_WORKS = {kind: number for number, kind in ROW_KINDS.items()}
_STATES: Mapping[JobState, pb.JobState.ValueType] = {
    JobState.QUEUED: pb.JOB_STATE_QUEUED,
    JobState.RUNNING: pb.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: pb.JOB_STATE_SUCCEEDED,
    JobState.FAILED: pb.JOB_STATE_FAILED,
    JobState.CANCELLED: pb.JOB_STATE_CANCELLED,
}


def job_to_proto(job: Job) -> pb.Job:
    """Returns the message that clients see of a job."""
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
        start_time=_timestamp(job.started_s),
        end_time=_timestamp(job.ended_s),
    )
    _work_to_proto(job.kind, job.work, message)
    return message


def work_from_proto(message: pb.CreateJobRequest) -> tuple[str, Work]:
    """Returns the kind and the work of a request. The kind is "" if the request does not set it.

    Does not check the values. Raises ValueError if a `_json` field is not valid JSON.
    """
    name = message.WhichOneof("work") or _ROWS
    part: Message = getattr(message, name)
    kind = ROW_KINDS.get(message.rows.work, "") if name == _ROWS else name
    work_type = WORK_TYPES[kind or GENERATE]
    given = dict(_core_value(field, value) for field, value in part.ListFields() if field.type != FieldDescriptor.TYPE_ENUM)
    return kind, work_type(**{**_empty_values(work_type), **given})


def proto_path(work_name: str, field: str) -> str:
    """Returns the path of the protobuf field for a core field, such as rows.max_stall for max_stall_s.

    `work_name` is the name of the field in CreateJobRequest's `work`.
    """
    fields = getattr(pb.CreateJobRequest(), work_name).DESCRIPTOR.fields_by_name
    candidates = (field, f"{field}{_JSON_SUFFIX}", field.removesuffix(_SECONDS_SUFFIX))
    return f"{work_name}.{next(name for name in candidates if name in fields)}"


def _core_value(field: FieldDescriptor, value: Any) -> tuple[str, Any]:
    """Returns the name and the value of the core field for a protobuf field."""
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return f"{field.name}{_SECONDS_SUFFIX}", value.seconds + value.nanos / 1e9
    if field.name.endswith(_JSON_SUFFIX):
        return field.name.removesuffix(_JSON_SUFFIX), json.loads(value)
    return field.name, tuple(value) if field.is_repeated else value


def _empty_values(work_type: type[Work]) -> dict[str, Any]:
    """Returns empty values for the fields that have no default, since protobuf does not transmit empty ones."""
    hints = get_type_hints(work_type)
    return {name: () if get_origin(hints[name]) is tuple else "" for name in required_fields(work_type)}


def _work_to_proto(kind: str, work: Work, message: pb.Job) -> None:
    part: Message = getattr(message, _ROWS if kind in _ROW_WORKS else kind)
    part.SetInParent()
    for field in part.DESCRIPTOR.fields:
        value = _proto_value(field, kind, work)
        if field.is_repeated:
            getattr(part, field.name).extend(value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(part, field.name).CopyFrom(value)
        elif value is not None:
            setattr(part, field.name, value)


def _proto_value(field: Any, kind: str, work: Work) -> Any:
    """Returns the value of a protobuf field; None leaves it absent."""
    if field.type == FieldDescriptor.TYPE_ENUM:
        return _ROW_WORKS[kind]
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return duration(getattr(work, f"{field.name}{_SECONDS_SUFFIX}"))
    if field.name.endswith(_JSON_SUFFIX):
        value = getattr(work, field.name.removesuffix(_JSON_SUFFIX))
        return json.dumps(value, sort_keys=True) if value else ""
    return getattr(work, field.name)


def _timestamp(at_s: float | None) -> Timestamp | None:
    return None if at_s is None else timestamp(at_s)
