"""The corpus: which documents are kept and rejected, and the files."""

from pathlib import Path

import pytest

from tools.builtin_model.data.corpus import (
    CorpusFilter,
    Document,
    build_corpus,
    decode_source,
    documentation_documents,
    hash_fraction,
    is_test_path,
    package_documents,
    quality_problem,
    read_documents,
    stdlib_documents,
)


def source(name: str, lines: int = 30) -> str:
    """Returns plausible code whose lines are distinctive for `name`."""
    return "\n".join(f"result_{name} = compute_{name}(argument, option_{name}={index % 7})  # {name}" for index in range(lines))


def words(name: str) -> str:
    """Returns code with distinct lines that no other name shares."""
    return "\n".join(f"value = {name}_function_{chr(97 + index)}(first, second, third)" for index in range(20))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1\n", "too short"),
        ("value = call(argument)\n" * 20_000, "too long"),
        (words("a") + "\n# " + "z" * 700, "long lines"),
        ("0x1234, 0x5678, 98765,\n" * 40, "table of numbers"),
        (words("a"), None),
    ],
)
def test_quality_problem_names_the_reason(text: str, problem: str | None) -> None:
    assert quality_problem(text) == problem


def test_filter_duplicate_is_rejected() -> None:
    corpus_filter = CorpusFilter(frozenset())
    assert [corpus_filter.accept(Document(path, "p", words("a"))) for path in ("a.py", "b.py")] == [True, False]
    assert corpus_filter.rejected == {"duplicate": 1}


def test_filter_slightly_changed_copy_is_rejected() -> None:
    corpus_filter = CorpusFilter(frozenset())
    assert corpus_filter.accept(Document("a.py", "p", words("a")))
    assert not corpus_filter.accept(Document("b.py", "p", words("a") + "\nanother_line_of_this_copy = True"))
    assert corpus_filter.rejected == {"near duplicate": 1}


def test_build_corpus_vendored_copy_of_heldout_text_is_rejected(tmp_path: Path) -> None:
    heldout = [Document("secret.py", "heldout", words("secret"))]
    candidates = [Document("vendor/other.py", "p", words("secret")), Document("own.py", "p", words("own"))]
    report = build_corpus(candidates, heldout, tmp_path)
    assert [document.path for document in read_documents(tmp_path / "train.jsonl")] == ["own.py"]
    assert read_documents(tmp_path / "heldout.jsonl") == heldout
    assert (report.documents, report.rejected) == (1, {"held out": 1})
    assert report.total_bytes == len(words("own"))
    assert report.heldout_lines_seen_fraction == 0.0
    assert not list(tmp_path.glob("*.partial"))


def test_stdlib_documents_skip_site_packages_and_repeat_modules(tmp_path: Path) -> None:
    for name in ("module.py", "site-packages/installed.py", "encodings/cp1252.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(source("m"))
    documents = list(stdlib_documents(tmp_path))
    assert [(document.path, document.repeats) for document in documents] == [("module.py", 2)]


def test_package_documents_skip_tests_and_sample_by_path() -> None:
    files = [(f"package/module_{index}.py", b"x = 1") for index in range(400)]
    files.append(("package/tests/test_module.py", b"x = 1"))
    kept = [document.path for document in package_documents("package", files, 0.25)]
    assert kept == [document.path for document in package_documents("package", reversed(files), 0.25)][::-1]
    assert 60 < len(kept) < 140
    assert "package/tests/test_module.py" not in kept


def test_documentation_documents_read_rest_sources(tmp_path: Path) -> None:
    (tmp_path / "page.rst.txt").write_text("Title\n=====\n")
    (tmp_path / "other.html").write_text("<p>")
    assert [document.path for document in documentation_documents(tmp_path)] == ["page.rst.txt"]


def test_decode_source_rejects_latin_1_and_unifies_line_ends() -> None:
    assert decode_source("é".encode("latin-1")) is None
    assert decode_source(b"a\r\nb\n") == "a\nb\n"


@pytest.mark.parametrize(
    ("path", "is_test"), [("test/support.py", True), ("a/test_b.py", True), ("a/b_test.py", True), ("a/latest.py", False)]
)
def test_is_test_path_considers_folders_and_names(path: str, is_test: bool) -> None:
    assert is_test_path(path) is is_test


def test_hash_fraction_is_deterministic_and_in_range() -> None:
    assert hash_fraction("a/b.py") == hash_fraction("a/b.py")
    assert all(0.0 <= hash_fraction(str(index)) < 1.0 for index in range(100))


def test_document_with_zero_repeats_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"repeats of a\.py is 0"):
        Document("a.py", "p", "", repeats=0)
