"""Our log lines and those of libraries have the same format, with the request id of their call."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from neox_serve.settings.cluster import LogSettings
from neox_serve.telemetry import logs


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_carry_level_component_and_request_id() -> None:
    stream = io.StringIO()
    logs.configure(LogSettings(format="json"), "gateway", stream)
    with logs.bound(request_id="id-1"):
        structlog.get_logger("ours").info("call", tokens=3)
        logging.getLogger("library").warning("slow by %d", 7)
    ours, theirs = lines(stream)
    assert (ours["event"], ours["tokens"], ours["level"]) == ("call", 3, "info")
    assert (theirs["event"], theirs["logger"], theirs["level"]) == ("slow by 7", "library", "warning")
    for line in (ours, theirs):
        assert (line["component"], line["request_id"]) == ("gateway", "id-1")
        assert line["timestamp"].endswith("Z")


def test_level_applies_to_our_lines_and_those_of_libraries() -> None:
    stream = io.StringIO()
    logs.configure(LogSettings(level="warning", format="json"), "router", stream)
    structlog.get_logger("ours").info("quiet")
    logging.getLogger("library").info("quiet")
    structlog.get_logger("ours").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_json_line_contains_the_exception() -> None:
    stream = io.StringIO()
    logs.configure(LogSettings(format="json"), "gateway", stream)
    try:
        int("broken")
    except ValueError:
        structlog.get_logger("ours").exception("fault")
    (line,) = lines(stream)
    assert line["exception"][0]["exc_type"] == "ValueError"


def test_console_format_writes_readable_lines() -> None:
    stream = io.StringIO()
    logs.configure(LogSettings(format="console"), "gateway", stream)
    structlog.get_logger("ours").info("gateway_started", port=1)
    assert "gateway_started" in stream.getvalue()
    assert "component=gateway" in stream.getvalue()
