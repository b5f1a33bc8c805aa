"""Usage chains detect changed, removed, inserted and truncated records."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.tenancy.usage import Chain, ChainedRecord, UsageRecord, verify

SECRET = b"s" * 32
RECORD = UsageRecord("r", "acme", "Generate", "m", "", "replica", "OK", 1, 2, 0, 3, 4, 5, 6)


def chained(count: int, name: str = "gateway") -> list[ChainedRecord]:
    chain = Chain(SECRET, name)
    return [chain.append(replace(RECORD, at_us=moment)) for moment in range(count)]


def head(entries: list[ChainedRecord]) -> list[tuple[str, int, str]]:
    return [(entries[-1].chain, entries[-1].sequence, entries[-1].hash)]


@given(st.integers(1, 8))
def test_chain_as_written_verifies(count: int) -> None:
    entries = chained(count)
    assert verify(SECRET, entries, head(entries)) == []


@given(st.integers(1, 8), st.data())
def test_changed_record_is_located(count: int, data: st.DataObject) -> None:
    entries = chained(count)
    at = data.draw(st.integers(0, count - 1))
    record = entries[at].record
    changed = data.draw(st.sampled_from([replace(record, completion_tokens=99), replace(record, tenant="b"), replace(record, at_us=99)]))
    found = verify(SECRET, [*entries[:at], replace(entries[at], record=changed), *entries[at + 1 :]], head(entries))
    assert [(one.sequence, one.what) for one in found] == [(at + 1, "a record was changed")]


@given(st.integers(2, 8), st.data())
def test_removed_record_is_detected(count: int, data: st.DataObject) -> None:
    entries = chained(count)
    at = data.draw(st.integers(0, count - 1))
    assert len(verify(SECRET, [*entries[:at], *entries[at + 1 :]], head(entries))) == 1


def test_removed_chain_is_detected() -> None:
    entries = chained(3)
    assert len(verify(SECRET, [], head(entries))) == 1


def test_chain_rebuilt_without_the_secret_is_detected() -> None:
    forged = Chain(b"guess", "gateway").append(RECORD)
    assert [one.what for one in verify(SECRET, [forged], head([forged]))] == ["a record was changed"]


def test_texts_cannot_move_between_fields() -> None:
    one, other = replace(RECORD, tenant="ab", method="c"), replace(RECORD, tenant="a", method="bc")
    assert Chain(SECRET, "g").append(one).hash != Chain(SECRET, "g").append(other).hash


def test_chains_of_two_gateways_are_independent() -> None:
    first, second = chained(2, "a"), chained(2, "b")
    swapped = [*first[:1], replace(second[1], chain="a"), *second]
    assert {one.chain for one in verify(SECRET, swapped, head(first) + head(second))} == {"a"}
