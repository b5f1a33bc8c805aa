"""What runs used that make no calls, and so are in no gateway's records: trainings, quantisings, engines of jobs' own."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from sqlalchemy.exc import IntegrityError

from neox_serve.core.jobs.job import Job, makes_calls
from neox_serve.core.tenancy.quota import Spent
from neox_serve.core.tenancy.tenants import Tenant
from neox_serve.core.tenancy.usage import Chain, UsageRecord
from neox_serve.tenancy.usage_store import UsageStore


class TokenQuotas(Protocol):
    """The router's quotas, for any thread but the router's."""

    def charge(self, spent: Mapping[str, Iterable[Spent]]) -> None:
        """Tells it what was used, by its source; told again of a source, it forgets what it was told before."""

    def used_up(self, tenant: Tenant) -> tuple[str, ...]:
        """The names of a tenant's quotas that hold not one token more now. Raises TimeoutError where the router does not answer."""


class Accounts:
    """A usage record for each run, in a chain of its own by the run's id: so a run is never recorded twice. model: the one served."""

    def __init__(self, usage: UsageStore, secret: bytes, model: str, quotas: TokenQuotas) -> None:
        self._usage = usage
        self._secret = secret
        self._model = model
        self._quotas = quotas

    def used_up(self, tenant: Tenant) -> tuple[str, ...]:
        """The names of a tenant's quotas that hold not one token more now."""
        return self._quotas.used_up(tenant)

    def settle(self, job: Job, outcome: str, now_s: float) -> None:
        """The job's run has ended: what it used is recorded, and counts against its tenant's quotas. now_s: since the epoch."""
        if makes_calls(job.work) or job.progress.tokens + job.progress.prompt_tokens == 0:
            return
        record = self._record(job, outcome, now_s)
        try:
            self._usage.append([Chain(self._secret, job.run_id).append(record)])
        except IntegrityError:
            return
        self._quotas.charge({job.run_id: [Spent(job.tenant, now_s, 1, record.tokens)]})

    def _record(self, job: Job, outcome: str, now_s: float) -> UsageRecord:
        """Only what is generated are tokens of completions."""
        progress, generated = job.progress, job.kind == "generate"
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
