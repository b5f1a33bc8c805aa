"""The database tables. `migrations/` creates them; a test compares the two."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("weight", Float, nullable=False),
    Column("class_ceiling", Integer, nullable=False),
    Column("models", JSON(none_as_null=True)),
    Column("adapters", JSON(none_as_null=True)),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("tokens_per_day", BigInteger),
    Column("concurrent_requests", BigInteger),
    Column("enabled", Boolean, nullable=False),
    Column("created_s", Float, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(16), primary_key=True),
    Column("tenant", String(63), ForeignKey("tenants.name"), nullable=False, index=True),
    Column("secret_hash", String(64), nullable=False),
    Column("label", String(128), nullable=False),
    Column("created_s", Float, nullable=False),
    Column("expires_s", Float),
    Column("revoked_s", Float),
)

certificates = Table(
    "certificates",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("tenant", String(63), ForeignKey("tenants.name"), nullable=False, index=True),
)

revisions = Table(
    "revisions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

audit_entries = Table(
    "audit_entries",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("at_s", Float, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(255), nullable=False),
    Column("details", JSON, nullable=False),
)

usage_records = Table(
    "usage_records",
    metadata,
    Column("chain", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", String(160), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("method", String(128), nullable=False),
    Column("model", String(64), nullable=False),
    Column("adapter", String(64), nullable=False),
    Column("replica_id", String(128), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("admission_us", BigInteger, nullable=False),
    Column("first_token_us", BigInteger, nullable=False),
    Column("total_us", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    Index("ix_usage_records_at_us_tenant", "at_us", "tenant"),
)

usage_chains = Table(
    "usage_chains",
    metadata,
    Column("chain", String(64), primary_key=True),
    Column("length", BigInteger, nullable=False),
    Column("last_hash", String(64), nullable=False),
)

batch_jobs = Table(
    "batch_jobs",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("request_id", String(160)),
    Column("kind", String(32), nullable=False),
    Column("work", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("message", String(4000), nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("run_id", String(64), nullable=False),
    Column("runs", Integer, nullable=False),
    Column("runs_without_progress", Integer, nullable=False),
    Column("rows_before_run", BigInteger, nullable=False),
    Column("key_id", String(16), nullable=False),
    Column("created_s", Float, nullable=False),
    Column("started_s", Float),
    Column("ended_s", Float),
    UniqueConstraint("tenant", "request_id", name="uq_batch_jobs_tenant_request_id"),
    Index("ix_batch_jobs_tenant_job_id", "tenant", "job_id"),
    Index("ix_batch_jobs_state", "state"),
)

batch_job_logs = Table(
    "batch_job_logs",
    metadata,
    Column("job_id", String(64), primary_key=True),
    Column("run_id", String(64), nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
)
