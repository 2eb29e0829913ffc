"""How a process writes its logs.

The library itself logs with the standard library and ``extra={…}``, and leaves this to whoever owns the process.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Literal, TextIO

import orjson
import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NOISY = ("psycopg.pool", "alembic", "sqlalchemy", "asyncio")


def configure_logging(
    format: Literal["text", "json"] | str = "text",  # noqa: A002, PYI051 - the setting's word
    level: int | str = logging.INFO,
    stream: TextIO | None = None,
) -> None:
    """Write the log records of the whole process to ``stream``, each with its ``extra`` (job_id, task, queue …).

    Calling it again replaces what the first call did.

    Args:
        format: ``text``: a line for people, in colours on a terminal unless NO_COLOR is set; ``json``: one object
            per line with timestamp, level, logger, event, and every extra.
        level: the least that is written, for pgqueue's loggers; others say warnings and worse.
        stream: default stderr.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(json=format == "json", colors=stream.isatty() and not os.environ.get("NO_COLOR")))
    root = logging.getLogger()
    for old in [old for old in root.handlers if getattr(old, "_pgqueue", False)]:
        root.removeHandler(old)
    handler._pgqueue = True  # type: ignore[attr-defined]  # noqa: SLF001 - our own mark
    root.addHandler(handler)
    root.setLevel(level)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _formatter(*, json: bool, colors: bool) -> logging.Formatter:
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _without_leftovers,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor]
    if json:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_dumps)]
    else:
        plain = structlog.dev.plain_traceback
        last = [_clean, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain, pad_event_to=0)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )


def _without_leftovers(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """What another handler's formatter has left on the record is no extra."""
    event.pop("message", None)
    event.pop("asctime", None)
    return event


def _clean(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """What is in the queue must not steer the terminal of who reads the log."""
    return {key: _escaped(value) if isinstance(value, str) else value for key, value in event.items()}


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def _dumps(event: Any, **_options: Any) -> str:
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # a lone surrogate
        safe = {str(key): str(value).encode(errors="replace").decode() for key, value in event.items()}
        return orjson.dumps(safe).decode()
