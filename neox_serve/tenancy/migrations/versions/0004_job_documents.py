"""Rename columns of batch jobs, and store each job's work as a versioned document."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_RENAMED = {"set_aside": "rejects", "patience_s": "max_stall_s"}


def upgrade() -> None:
    """Apply the migration."""
    with op.batch_alter_table("batch_jobs") as table:
        table.alter_column("cancel_asked", new_column_name="cancel_requested")
        table.alter_column("fruitless_runs", new_column_name="runs_without_progress")
    jobs = sa.table("batch_jobs", sa.column("job_id", sa.String), sa.column("kind", sa.String), sa.column("work", sa.JSON))
    connection = op.get_bind()
    for job_id, kind, work in connection.execute(sa.select(jobs.c.job_id, jobs.c.kind, jobs.c.work)).all():
        connection.execute(sa.update(jobs).where(jobs.c.job_id == job_id).values(work=_document(kind, work)))


def _document(kind: str, stored: Any) -> dict[str, Any]:
    values = json.loads(stored) if isinstance(stored, str) else stored
    work = {_RENAMED.get(name, name): value for name, value in values.items()}
    if kind == "evaluate" and work.get("shots") == -1:
        work["shots"] = None
    return {"version": 1, "kind": kind, "work": work}
