"""Usage records of runs that make no calls: training, quantization and runs with an engine of their own.

Gateways record the usage of calls, so these runs would otherwise be in no record.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from sqlalchemy.exc import IntegrityError

from neox_serve.core.jobs.job import Job
from neox_serve.core.jobs.rows import GENERATE
from neox_serve.core.jobs.work import makes_calls
from neox_serve.core.tenancy.quota import Spent
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.core.tenancy.usage import Chain, UsageRecord
from neox_serve.tenancy.usage_store import UsageStore


class TokenQuotas(Protocol):
    """The router's quotas, for use on another thread than the router's."""

    def charge(self, spent: Mapping[str, Iterable[Spent]]) -> None:
        """Charges usage, by its source. Usage of a source that was charged before replaces the earlier usage."""

    def used_up(self, tenant: Tenant) -> tuple[str, ...]:
        """Returns the names of a tenant's quotas that are used up now. Raises TimeoutError if the router does not answer."""


class Accounts:
    """Writes a usage record for each run.

    Each record is in a chain of its own, named after the run, so that a run is never recorded twice.
    """

    def __init__(self, usage: UsageStore, secret: bytes, model: str, quotas: TokenQuotas) -> None:
        """`secret` signs the records; `model` is the name of the served model."""
        self._usage = usage
        self._secret = secret
        self._model = model
        self._quotas = quotas

    def used_up(self, tenant: Tenant) -> tuple[str, ...]:
        """Returns the names of a tenant's quotas that are used up now. Raises TimeoutError if the router does not answer."""
        return self._quotas.used_up(tenant)

    def record_run(self, job: Job, outcome: str, now_s: float) -> None:
        """Records what the job's last run used, which has ended, and charges its tenant's quotas. `now_s` is seconds since the epoch."""
        if makes_calls(job.work) or job.progress.tokens + job.progress.prompt_tokens == 0:
            return
        record = self._record(job, outcome, now_s)
        try:
            self._usage.append([Chain(self._secret, job.run_id).append(record)])
        except IntegrityError:
            return
        self._quotas.charge({job.run_id: [Spent(job.tenant, now_s, 1, record.tokens)]})

    def _record(self, job: Job, outcome: str, now_s: float) -> UsageRecord:
        """Counts tokens as completion tokens only if the job generates text."""
        progress, generated = job.progress, job.kind == GENERATE
        return UsageRecord(
            request_id=job.run_id,
            tenant=job.tenant,
            method=f"job {job.kind}",
            model=self._model,
            adapter="",
            replica_id="",
            outcome=outcome,
            at_us=round(now_s * 1e6),
            prompt_tokens=progress.prompt_tokens if generated else progress.tokens,
            cached_tokens=0,
            completion_tokens=progress.tokens if generated else 0,
            admission_us=0,
            first_token_us=0,
            total_us=round((now_s - (job.started_s or now_s)) * 1e6),
        )
