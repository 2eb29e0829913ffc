from __future__ import annotations

import io
import json
import logging

import pytest

from pgqueue.logs import configure_logging

log = logging.getLogger("pgqueue.somewhere")


@pytest.fixture(autouse=True)
def _restored():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_json_is_one_object_per_line_with_every_extra():
    out = io.StringIO()
    configure_logging("json", "INFO", out)
    log.info("job %d done", 7, extra={"job_id": 7, "task": "mail", "queue": "emails", "attempt": 2})
    event = json.loads(out.getvalue())
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "level": "info", "logger": "pgqueue.somewhere", "event": "job 7 done",
        "job_id": 7, "task": "mail", "queue": "emails", "attempt": 2,
    }  # fmt: skip


def test_json_holds_exceptions_and_whatever_is_not_json():
    out = io.StringIO()
    configure_logging("json", "INFO", out)
    try:
        raise ValueError("no luck")  # noqa: TRY301
    except ValueError:
        log.exception("it failed", extra={"odd": object(), "bad": "\ud800"})
    event = json.loads(out.getvalue())
    assert "ValueError: no luck" in event["exception"]
    assert event["odd"].startswith("<object")
    assert event["bad"] == "?"


def test_text_is_a_line_without_colours_in_a_pipe():
    out = io.StringIO()
    configure_logging("text", "INFO", out)
    log.warning("swept", extra={"job_id": 7})
    assert "\x1b" not in out.getvalue()
    assert "swept" in out.getvalue()
    assert "job_id=7" in out.getvalue()


def test_text_has_colours_on_a_terminal_unless_no_color_is_set(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    configure_logging("text", "INFO", out)
    log.warning("swept")
    assert "\x1b[" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    configure_logging("text", "INFO", plain)
    log.warning("swept")
    assert "\x1b[" not in plain.getvalue()


def test_what_is_in_the_queue_does_not_steer_the_terminal():
    out = io.StringIO()
    configure_logging("text", "INFO", out)
    log.info("failed: %s", "\x1b[2J", extra={"task": "\x1b]0;hello\x07"})
    assert "\x1b" not in out.getvalue()
    assert "\\x1b[2J" in out.getvalue()


def test_a_second_call_replaces_the_first():
    first, second = io.StringIO(), io.StringIO()
    configure_logging("text", "INFO", first)
    configure_logging("text", "INFO", second)
    log.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_the_level_is_obeyed_and_noisy_libraries_are_quiet():
    out = io.StringIO()
    configure_logging("text", logging.DEBUG, out)
    log.debug("detail")
    logging.getLogger("psycopg.pool").info("chatter")
    assert "detail" in out.getvalue()
    assert "chatter" not in out.getvalue()
