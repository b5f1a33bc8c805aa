"""Log lines of every process: one format, with timestamp, level, component and, inside a call, the request id.

Our code logs through structlog; libraries log through the standard library's `logging`, which is routed into the same format. There is one
form for our own events: a constant snake_case name and fields, `log.info("replica_started", replica_id=...)`. A test enforces the names.
Fields never contain prompts, outputs or keys.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from neox_serve.settings.cluster import LogSettings

_HEADER_CODEC = "hpack"
"""Logger of the HTTP/2 header codec. At level debug it writes several lines for every header of every call, credentials included."""

bound = structlog.contextvars.bound_contextvars
"""`with bound(request_id=...)`: all lines written in the block carry these fields, also those of tasks started in it."""


def configure(settings: LogSettings, component: str, stream: TextIO = sys.stderr) -> None:
    """Sends all log lines of this process to `stream`, in the configured format. `component` names the process, for example "gateway"."""
    shared = _shared_processors(component)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_renderers(settings, stream)))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level.upper())
    logging.getLogger(_HEADER_CODEC).setLevel(logging.INFO)


def _shared_processors(component: str) -> list[Processor]:
    """Returns the processors of all lines, our own and those of libraries."""

    def add_component(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("component", component)
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        add_component,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _renderers(settings: LogSettings, stream: TextIO) -> list[Processor]:
    clean = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if settings.format == "json":
        return [clean, structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    return [clean, structlog.dev.ConsoleRenderer(colors=stream.isatty())]
