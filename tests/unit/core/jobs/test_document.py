"""Documents of jobs: what is written is read back, and what cannot be used is refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neox_serve.core.jobs import document
from neox_serve.core.jobs.document import DocumentError
from neox_serve.core.jobs.finetune import TARGETS, FinetuneWork
from neox_serve.core.jobs.work import Work
from tests.works import WORKS, changed_works


def read_back(kind: str, work: Work) -> tuple[str, Work]:
    """Writes the work as text and reads it."""
    return document.load_work(document.parse(document.to_text(document.dump_work(kind, work)).encode()))


@pytest.mark.parametrize(("kind", "field", "work"), [*changed_works(), *((kind, "", work) for kind, work in WORKS.items())])
def test_document_of_work_is_read_back_with_every_field(kind: str, field: str, work: Work) -> None:
    assert read_back(kind, work) == (kind, work)


@given(
    st.builds(
        FinetuneWork,
        input=st.text(),
        adapter=st.just("acme/lines"),
        rejects=st.text(),
        alpha=st.floats(0, 1e4, exclude_min=True),
        targets=st.lists(st.sampled_from(TARGETS), min_size=1, unique=True).map(tuple),
        learning_rate=st.floats(0, 1, exclude_min=True),
        evaluation_fraction=st.floats(0, 0.5),
        seed=st.integers(0, (1 << 31) - 1),
    )
)
def test_document_preserves_every_text_and_number(work: FinetuneWork) -> None:
    assert read_back("finetune", work) == ("finetune", work)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 1_000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = [*(field.name for field in dataclasses.fields(FinetuneWork)), "other"]


@given(st.sampled_from(list(WORKS)), st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6))
def test_document_with_any_values_is_refused_or_valid(kind: str, values: dict[str, Any]) -> None:
    stored = document.dump_work(kind, WORKS[kind])
    try:
        found = document.load_work({**stored, "work": {**stored["work"], **values}})
    except DocumentError:
        return
    assert document.load_work(document.dump_work(*found)) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 0}, "work.rank: 0 is invalid; it must be in [1, 256]"),
        ({"rank": 1.0}, "work.rank: must be an integer, not a number"),
        ({"rank": True}, "work.rank: must be an integer, not a boolean"),
        ({"alpha": 10**400}, "work.alpha: the number is too large"),
        ({"targets": "dense"}, "work.targets: must be an array, not a string"),
        ({"targets": ["dense", 1]}, "work.targets[1]: must be a string, not an integer"),
        ({"targets": []}, "work.targets: () is invalid; it must be one or more of"),
        ({"ranks": 1}, "work.ranks: unknown key; the keys are adapter, alpha"),
        ({"adapter": None}, "work.adapter: must be a string, not null"),
    ],
)
def test_document_with_a_wrong_field_is_refused_by_its_name(change: dict[str, Any], said: str) -> None:
    stored = document.dump_work("finetune", WORKS["finetune"])
    with pytest.raises(DocumentError) as caught:
        document.load_work({**stored, "work": {**stored["work"], **change}})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ([], "the document must be a JSON object, not an array"),
        ({}, "version: None is not supported"),
        ({"version": 2, "kind": "embed", "work": {}}, "version: 2 is not supported; this software reads version 1"),
        ({"version": True, "kind": "embed", "work": {}}, "version: True is not supported"),
        ({"version": 1, "kind": "translate", "work": {}}, "kind: 'translate' is invalid; it must be one of generate, embed"),
        ({"version": 1, "kind": [], "work": {}}, "kind: [] is invalid"),
        ({"version": 1, "kind": "embed"}, "work: is missing"),
        ({"version": 1, "kind": "embed", "work": {"input": "in"}}, "work.output: is missing"),
        ({"version": 1, "kind": "embed", "work": [], "extra": 1}, "extra: unknown key"),
    ],
)
def test_document_with_a_wrong_frame_is_refused(stored: Any, said: str) -> None:
    with pytest.raises(DocumentError) as caught:
        document.load_work(stored)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ('{"x": NaN}', "NaN is not a JSON number"),
        (f'"{"x" * document.MAX_BYTES}"', f"at most {document.MAX_BYTES} are allowed"),
        ("[" * 40 + "]" * 40, "at most 32 levels"),
        ("[" * 100_000 + "]" * 100_000, "at most 32 levels"),
        (f'"{chr(0xDCFF)}"', "is not valid JSON"),
    ],
)
def test_text_that_is_no_document_is_refused(text: str, said: str) -> None:
    with pytest.raises(DocumentError) as caught:
        document.parse(text.encode(errors="surrogateescape"))
    assert said in str(caught.value)


def test_document_that_is_too_large_or_deep_is_not_written() -> None:
    nested: dict[str, Any] = {}
    for _ in range(40):
        nested = {"x": nested}
    with pytest.raises(DocumentError, match="at most 32 levels"):
        document.to_text(nested)
    with pytest.raises(DocumentError, match="at most 262144"):
        document.to_text({"x": "x" * document.MAX_BYTES})


@dataclasses.dataclass(frozen=True)
class Both:
    """Has a path and a nested dataclass."""

    folder: Path
    work: FinetuneWork
    other: Path | None = None


@pytest.mark.parametrize("other", [None, Path("/b")])
def test_document_of_nested_dataclasses_and_paths_is_read_back(other: Path | None) -> None:
    both = Both(Path("/a"), FinetuneWork("in", "chat"), other)
    assert document.load(Both, json.loads(document.to_text(document.dump(both)))) == both
