"""What a call leaves behind when it has ended: fields of its log line, and its usage record."""

from typing import Any

from neox_serve.core.tenancy.usage import UsageRecord
from neox_serve.gateway.server.calls import Call, TokenCount


def log_fields(call: Call, code: str, now_s: float) -> dict[str, Any]:
    """Returns the fields of the log line. `code` is the gRPC status code, `now_s` the time on the event loop's clock."""
    progress, tokens, arrived_at_s = call.progress, call.accounting.tokens, call.deadline.arrived_at_s
    fields: dict[str, Any] = {
        "method": call.method,
        "tenant": call.tenant.name,
        "outcome": progress.life.phase.value,
        "code": code,
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_s": round(now_s - arrived_at_s, 4),
    }
    if progress.first_token_at_s is not None:
        fields["first_token_s"] = round(progress.first_token_at_s - arrived_at_s, 4)
    if progress.admission_s is not None:
        fields["admission_s"] = round(progress.admission_s, 4)
    if progress.gaps_s:
        fields["gaps_s"] = [round(gap_s, 4) for gap_s in progress.gaps_s]
    return fields


def usage_record(call: Call, outcome: str, now_s: float, unix_time_s: float) -> UsageRecord:
    """Returns what the call used, which is nothing if no replica was assigned.

    `outcome` is "OK" or the reason of the error, `now_s` the time on the event loop's clock, `unix_time_s` seconds since the epoch.
    """
    progress, accounting, arrived_at_s = call.progress, call.accounting, call.deadline.arrived_at_s
    tokens = accounting.tokens if progress.admission_s is not None else TokenCount()
    first_token_s = 0.0 if progress.first_token_at_s is None else progress.first_token_at_s - arrived_at_s
    return UsageRecord(
        request_id=call.request_id,
        tenant=call.tenant.name,
        method=call.method.rsplit("/", 1)[-1],
        model=accounting.model,
        adapter=call.identity.adapter,
        replica_id=progress.replica_id,
        outcome=outcome,
        at_us=round(unix_time_s * 1e6),
        prompt_tokens=tokens.prompt,
        cached_tokens=tokens.cached,
        completion_tokens=tokens.completion,
        admission_us=round((progress.admission_s or 0.0) * 1e6),
        first_token_us=round(first_token_s * 1e6),
        total_us=round((now_s - arrived_at_s) * 1e6),
    )
