"""What runs used that make no calls, and so are in no gateway's records: trainings, quantisings, engines of jobs' own."""

from collections.abc import Callable, Iterable, Mapping

from sqlalchemy.exc import IntegrityError

from neox_serve.core.jobs import Job, makes_calls
from neox_serve.core.quota import Spent
from neox_serve.core.usage import Chain, UsageRecord
from neox_serve.tenancy.usage_store import UsageStore

Charge = Callable[[Mapping[str, Iterable[Spent]]], None]
"""Told what was used, by its source; told again of a source, it forgets what it was told before."""


class Accounts:
    """A usage record for each run, in a chain of its own by the run's id: so a run is never recorded twice. model: the one served."""

    def __init__(self, usage: UsageStore, secret: bytes, model: str, charge: Charge) -> None:
        self._usage = usage
        self._secret = secret
        self._model = model
        self._charge = charge

    def settle(self, job: Job, outcome: str, now_s: float) -> None:
        """The job's run has ended: what it used is recorded, and counts against its tenant's quotas. now_s: since the epoch."""
        if makes_calls(job.work) or job.progress.tokens + job.progress.prompt_tokens == 0:
            return
        record = self._record(job, outcome, now_s)
        try:
            self._usage.append([Chain(self._secret, job.run_id).append(record)])
        except IntegrityError:
            return
        self._charge({job.run_id: [Spent(job.tenant, now_s, 1, record.tokens)]})

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
