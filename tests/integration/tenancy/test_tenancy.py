"""Tenants, keys, audit log and usage in real databases: SQLite and PostgreSQL."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from neox_serve.core.errors import Reason, ServeError
from neox_serve.core.tenancy.tenants import PriorityClass, Quotas, Role, Tenant
from neox_serve.core.tenancy.usage import Chain, UsageRecord
from neox_serve.settings import SettingsError
from neox_serve.tenancy import tables
from neox_serve.tenancy.database import open_database
from neox_serve.tenancy.tenant_store import TenantStore
from neox_serve.tenancy.usage_store import UsageStore

SECRET = b"s" * 32
ACME = Tenant(
    "acme",
    role=Role.TENANT,
    weight=2.5,
    class_ceiling=PriorityClass.BULK,
    models=frozenset({"m"}),
    adapters=frozenset(),
    quotas=Quotas(1, 2, 3, None),
)
RECORD = UsageRecord("r", "acme", "Generate", "m", "", "replica", "OK", 1_000_000, 20, 5, 3, 4, 5, 6)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    opened = open_database(database_url)
    yield opened
    opened.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Engine, clock: Clock) -> TenantStore:
    return TenantStore(database, clock=clock)


def refused(reason: Reason, words: str, call: object) -> None:
    with pytest.raises(ServeError, match=words) as caught:
        call()  # type: ignore[operator]
    assert caught.value.reason is reason


def test_migrations_make_the_tables_that_the_code_knows(database: Engine) -> None:
    with database.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_database_opened_by_many_at_once_is_migrated_once(database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        engines = list(pool.map(open_database, [database_url] * 4))
    TenantStore(engines[0]).add(ACME, "me")
    assert TenantStore(engines[3]).tenant("acme") == ACME
    for one in engines:
        one.dispose()


def test_tenant_is_read_as_it_was_written(store: TenantStore) -> None:
    store.add(ACME, "me", ("acme.example",))
    assert store.tenant("acme") == ACME
    free = Tenant("free")
    store.add(free, "me")
    directory = store.directory()
    assert directory.tenants == {"acme": ACME, "free": free}
    assert directory.certificates == {"acme.example": "acme"}
    changed = replace(ACME, models=None, adapters=frozenset({"a", "b"}), quotas=Quotas(), enabled=False)
    store.change(changed, "me", ())
    assert (store.tenant("acme"), store.directory().certificates) == (changed, {})


def test_names_taken_or_unknown_are_rejected_by_field(store: TenantStore) -> None:
    store.add(ACME, "me", ("acme.example",))
    refused(Reason.INVALID_ARGUMENT, "tenant.name: 'acme' already exists", lambda: store.add(ACME, "me"))
    refused(Reason.INVALID_ARGUMENT, "certificate_names", lambda: store.add(Tenant("b"), "me", ("acme.example",)))
    assert "b" not in store.directory().tenants
    for call in (lambda: store.tenant("x"), lambda: store.change(Tenant("x"), "me"), lambda: store.add_key("x", "me")):
        refused(Reason.INVALID_ARGUMENT, "there is no tenant 'x'", call)
    refused(Reason.INVALID_ARGUMENT, "there is no key", lambda: store.revoke_key("0" * 16, "me"))


@pytest.mark.parametrize("name", ["'; DROP TABLE tenants; --", '" OR 1=1', "%", "a\0b", "x" * 5_000])
def test_sql_in_names_finds_nothing_and_breaks_nothing(store: TenantStore, name: str) -> None:
    store.add(ACME, "me")
    if "\0" not in name:  # which PostgreSQL has no text for
        refused(Reason.INVALID_ARGUMENT, "there is no tenant", lambda: store.tenant(name))
        refused(Reason.INVALID_ARGUMENT, "there is no tenant", lambda: store.add_key(name, "me"))
    assert store.directory().tenants == {"acme": ACME}


def test_rotated_keys_overlap_and_then_end(store: TenantStore, clock: Clock) -> None:
    store.add(ACME, "me")
    old, _ = store.add_key("acme", "me", label="first")
    gone, _ = store.add_key("acme", "me")
    store.revoke_key(gone.key_id, "me")
    new, _ = store.rotate_keys("acme", "me", overlap_s=60, lifetime_s=1000)
    directory = store.directory()
    for made, until_s in ((old, 1060.0), (new, 2000.0)):
        assert directory.authenticate_key(made.text, until_s - 1).tenant == ACME
        refused(Reason.UNAUTHENTICATED, "not valid", lambda made=made, until_s=until_s: directory.authenticate_key(made.text, until_s))
    refused(Reason.UNAUTHENTICATED, "not valid", lambda: directory.authenticate_key(gone.text, clock.now_s))


def test_every_change_is_in_the_audit_log_without_secrets(store: TenantStore) -> None:
    store.add(ACME, "boss")
    made, kept = store.add_key("acme", "boss")
    store.revoke_key(made.key_id, "other")
    store.change(replace(ACME, weight=1.0), "boss")
    entries = store.audit()
    assert [(one.actor, one.action, one.subject) for one in reversed(entries)] == [
        ("boss", "tenant.add", "acme"),
        ("boss", "key.add", "acme"),
        ("other", "key.revoke", made.key_id),
        ("boss", "tenant.set", "acme"),
    ]
    written = repr(entries)
    assert made.text.rsplit("_", 1)[1] not in written
    assert kept.secret_hash not in written
    assert len(store.audit(2)) == 2


def test_failed_change_leaves_neither_entry_nor_revision(store: TenantStore) -> None:
    store.add(ACME, "me")
    before = store.revision()
    refused(Reason.INVALID_ARGUMENT, "exists", lambda: store.add(ACME, "me"))
    assert (store.revision(), len(store.audit())) == (before, 1)


def test_revision_grows_with_every_change_of_many_writers(store: TenantStore) -> None:
    barrier = threading.Barrier(4)

    def work(writer: int) -> None:
        barrier.wait()
        for number in range(5):
            store.add(Tenant(f"t-{writer}-{number}"), "me")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert (store.revision(), len(store.directory().tenants)) == (20, 20)


def test_usage_is_summed_by_tenant_and_model_within_the_period(database: Engine) -> None:
    usage, chain = UsageStore(database), Chain(SECRET, "gateway")
    usage.append([chain.append(replace(RECORD, at_us=at_us)) for at_us in (10, 20, 30)])
    usage.append([chain.append(replace(RECORD, tenant="b", outcome="OVERLOADED", at_us=20, completion_tokens=0))])
    (acme, other) = usage.sums(10, 30)
    assert (acme.tenant, acme.requests, acme.failed_requests, acme.prompt_tokens, acme.completion_tokens) == ("acme", 2, 0, 40, 6)
    assert (other.tenant, other.requests, other.failed_requests) == ("b", 1, 1)
    assert [one.tenant for one in usage.sums(0, 100, "b")] == ["b"]
    assert usage.totals() == (4, 80, 9)
    spent = usage.spent(20)["gateway"]
    assert sorted((one.tenant, one.requests, one.tokens) for one in spent) == [("acme", 1, 23), ("acme", 1, 23), ("b", 1, 20)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE usage_records SET completion_tokens = 0 WHERE sequence = 2",
        "DELETE FROM usage_records WHERE sequence = 2",
        "DELETE FROM usage_records WHERE sequence = 3",
        "DELETE FROM usage_records",
    ],
)
def test_tampering_with_usage_is_detected(database: Engine, statement: str) -> None:
    usage, chain = UsageStore(database), Chain(SECRET, "gateway")
    usage.append([chain.append(RECORD) for _ in range(3)])
    assert usage.verify(SECRET) == []
    with database.begin() as connection:
        connection.execute(text(statement))
    assert [one.chain for one in usage.verify(SECRET)] == ["gateway"]


def test_batch_that_was_already_written_is_rejected_as_a_whole(database: Engine) -> None:
    usage, chain = UsageStore(database), Chain(SECRET, "gateway")
    batch = [chain.append(RECORD) for _ in range(2)]
    usage.append(batch[:1])
    with pytest.raises(Exception, match=r"(?i)unique"):
        usage.append(batch)
    assert usage.totals()[0] == 1


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql+psycopg://me:hunter2@127.0.0.1:1/none", "mysql://x/y", "sqlite:////proc/none/neox.db"]
)
def test_unusable_database_error_names_the_setting_and_hides_the_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"access\.database_url") as caught:
        open_database(url)
    assert "hunter2" not in str(caught.value)
