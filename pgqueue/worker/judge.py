"""What a run's end means: an exception becomes an outcome, an outcome a line in the log."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import orjson

from pgqueue.durations import format_duration, parse_duration
from pgqueue.errors import Cancel, Dead, HandlerCrashedError, JobTimeoutError, Retry, Snooze
from pgqueue.outcome import COMPLETED, RELEASED, Outcome, describe_error, error_json

if TYPE_CHECKING:
    from pgqueue.run import Run
    from pgqueue.task import Task

log = logging.getLogger(__name__)

_LONGEST_DELAY: Final = timedelta(days=36_500).total_seconds()  # whatever a user's backoff says
_UNJUDGED_DELAY: Final = 60.0


def failed(run: Run, task: Task[Any, Any] | None, error: BaseException) -> Outcome:
    """The outcome of a run that raised. Never raises itself, whatever a user's backoff or delay does."""
    try:
        return _judge(run, task, error)
    except Exception as broken:
        log.exception("the end of a run could not be judged; it counts as a failure", extra=run.facts())
        verdict = "dead" if run.attempt >= run.max_attempts else "retry"
        return Outcome(verdict, error=describe_error(broken, run.attempt), delay=_UNJUDGED_DELAY)


def story(run: Run, outcome: Outcome) -> tuple[int, str]:
    """Level and text of the log line for an outcome that is not a completion."""
    why = ""
    if outcome.error:
        error = orjson.loads(outcome.error)
        why = f": {error['type']}: {error['message']}"
    wait = format_duration(timedelta(seconds=float(f"{outcome.delay:.3g}")))
    match outcome.verdict:
        case "retry" | "pass":
            return logging.WARNING, f"failed, again in {wait}{why}"
        case "dead":
            return logging.ERROR, f"dead after attempt {run.attempt} of {run.max_attempts}{why}"
        case "snooze":
            return logging.INFO, f"snoozed for {wait}"
        case "release":
            return logging.INFO, "given back"
        case verdict:
            return logging.INFO, f"{verdict}{why}"


def _judge(run: Run, task: Task[Any, Any] | None, error: BaseException) -> Outcome:  # noqa: PLR0911
    if run.landed:
        log.warning("the handler failed after its transaction had completed the job: %r", error, extra=run.facts())
        return COMPLETED
    if run.releasing:
        return RELEASED
    if isinstance(error, Snooze):
        return Outcome("snooze", delay=_seconds(error.delay))
    if isinstance(error, Cancel):
        return Outcome("cancelled", error=describe_error(error, run.attempt))
    if run.timed_out:
        error = JobTimeoutError(f"the handler ran longer than its timeout of {run.timeout:g}s")
    elif run.cancelled and isinstance(error, asyncio.CancelledError | HandlerCrashedError):
        return Outcome("cancelled", error=error_json(run.attempt, "Cancelled", "cancelled while it was running"))
    text = describe_error(error, run.attempt)
    if isinstance(error, Dead) or run.attempt >= run.max_attempts:
        return Outcome("dead", error=text)
    again = "pass" if task is not None and task.group_retry == "pass" else "retry"
    if isinstance(error, Retry):
        return Outcome(again, error=text, delay=_seconds(error.delay))
    policy = task.backoff_for(error) if task is not None else None
    delay = policy.delay(run.attempt) if policy is not None else None
    if delay is None:
        return Outcome("dead", error=text)
    return Outcome(again, error=text, delay=min(max(0.0, delay.total_seconds()), _LONGEST_DELAY))


def _seconds(delay: Any) -> float:
    return parse_duration(delay, "delay").total_seconds()
