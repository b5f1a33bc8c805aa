"""Usage records in the database: appended in batches, summed for reports and quotas, and verified as chains."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Engine, case, func, insert, select, update

from neox_serve.core.tenancy.quota import Spent
from neox_serve.core.tenancy.usage import FIELDS, ChainBreak, ChainedRecord, UsageRecord, verify
from neox_serve.tenancy.tables import usage_chains, usage_records

_READ_AT_ONCE = 5_000
"""Rows fetched at a time while verifying."""


@dataclass(frozen=True, slots=True)
class UsageSum:
    """A tenant's use of a model in a period."""

    tenant: str
    model: str
    requests: int
    failed_requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class UsageStore:
    """Reads and writes usage records. All calls block, so they must not run on the event loop."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    def append(self, chained: Sequence[ChainedRecord]) -> None:
        """Writes records of one chain, in order, and the chain's new end, in one transaction."""
        if not chained:
            return
        last = chained[-1]
        rows = [{"chain": one.chain, "sequence": one.sequence, "hash": one.hash, **asdict(one.record)} for one in chained]
        head = {"length": last.sequence, "last_hash": last.hash}
        with self._database.begin() as connection:
            connection.execute(insert(usage_records), rows)
            if connection.execute(update(usage_chains).where(usage_chains.c.chain == last.chain).values(**head)).rowcount == 0:
                connection.execute(insert(usage_chains).values(chain=last.chain, **head))

    def sums(self, since_us: int, until_us: int, tenant: str | None = None) -> list[UsageSum]:
        """Returns the use by tenant and model of requests that ended in [since_us, until_us), in microseconds since the epoch."""
        columns = usage_records.c
        failed = func.sum(case((columns.outcome == "OK", 0), else_=1))
        totals = [func.sum(columns[name]) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")]
        query = select(columns.tenant, columns.model, func.count(), failed, *totals).where(
            columns.at_us >= since_us, columns.at_us < until_us, *([] if tenant is None else [columns.tenant == tenant])
        )
        with self._database.connect() as connection:
            rows = connection.execute(query.group_by(columns.tenant, columns.model).order_by(columns.tenant, columns.model)).all()
        return [UsageSum(*row[:2], *(int(value or 0) for value in row[2:])) for row in rows]

    def spent(self, since_us: int) -> dict[str, list[Spent]]:
        """Returns, by gateway, the requests that ended since then, oldest first, in the form that quotas count."""
        columns = usage_records.c
        query = select(columns.chain, columns.tenant, columns.at_us, columns.prompt_tokens + columns.completion_tokens)
        with self._database.connect() as connection:
            rows = connection.execute(query.where(columns.at_us >= since_us).order_by(columns.at_us)).all()
        by_gateway: dict[str, list[Spent]] = {}
        for chain, tenant, at_us, tokens in rows:
            by_gateway.setdefault(chain, []).append(Spent(tenant, at_us / 1e6, 1, int(tokens)))
        return by_gateway

    def by_replica(self, since_us: int) -> list[tuple[str, int, int, int]]:
        """Returns the replica id, requests, prompt tokens and completion tokens of each replica that served requests since then."""
        columns = usage_records.c
        totals = [func.count(), func.sum(columns.prompt_tokens), func.sum(columns.completion_tokens)]
        query = select(columns.replica_id, *totals).where(columns.at_us >= since_us, columns.replica_id != "")
        with self._database.connect() as connection:
            rows = connection.execute(query.group_by(columns.replica_id).order_by(columns.replica_id)).all()
        return [(row[0], int(row[1]), int(row[2]), int(row[3])) for row in rows]

    def verify(self, secret: bytes) -> list[ChainBreak]:
        """Returns the positions at which chains differ from what was written."""
        with self._database.connect() as connection:
            heads = [tuple(row) for row in connection.execute(select(usage_chains)).all()]
        return verify(secret, self._all(), heads)

    def totals(self) -> tuple[int, int, int]:
        """Returns the numbers of records, prompt tokens and completion tokens of all time."""
        columns = usage_records.c
        query = select(func.count(), func.sum(columns.prompt_tokens), func.sum(columns.completion_tokens))
        with self._database.connect() as connection:
            row = connection.execute(query).one()
        return int(row[0]), int(row[1] or 0), int(row[2] or 0)

    def _all(self) -> Iterator[ChainedRecord]:
        query = select(usage_records).order_by(usage_records.c.chain, usage_records.c.sequence)
        with self._database.connect() as connection:
            rows = connection.execution_options(yield_per=_READ_AT_ONCE).execute(query).mappings()
            for row in rows:
                yield ChainedRecord(row["chain"], row["sequence"], _record(row), row["hash"])


def _record(row: Any) -> UsageRecord:
    return UsageRecord(**{name: row[name] for name in FIELDS})
