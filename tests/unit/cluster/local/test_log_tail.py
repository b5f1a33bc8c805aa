"""Reading the log files of the cluster's processes."""

from pathlib import Path

from cluster.local.log_tail import LogTail, follow


def test_log_tail_returns_every_complete_line_once(tmp_path: Path) -> None:
    tail = LogTail(tmp_path)
    first = tmp_path / "worker-1.err"
    first.write_text("one\ntw")
    assert list(tail.read()) == ["one"]
    with first.open("a") as file:
        file.write("o\n")
    (tmp_path / "worker-2.err").write_text("three\n")
    (tmp_path / "worker-2.out").write_text("not a log\n")
    assert list(tail.read()) == ["two", "three"]
    assert list(tail.read()) == []


def test_follow_shows_only_matching_lines(tmp_path: Path) -> None:
    (tmp_path / "worker-1.err").write_text("id=a came\nid=b came\n")
    shown: list[str] = []
    follow(LogTail(tmp_path), lambda line: "id=b" in line, shown.append, forever=False)
    assert shown == ["id=b came"]
