"""Trace context from enqueue to run, and OpenTelemetry's spans around both.

Active as soon as the program itself has imported OpenTelemetry and set a tracer provider. Nothing is imported here
before that, so an application that does not trace pays one look into a dict per enqueue, and nothing per run.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from pgqueue.errors import Cancel, InvalidJobError, Snooze
from pgqueue.run import current_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pgqueue.job import JobSpec

KEYS: Final = ("traceparent", "tracestate")  # W3C Trace Context, in a job's meta
_OUR_VERBS: Final = (Snooze, Cancel)


@dataclass(slots=True)
class Sending:
    """Jobs on their way into the database; ``ids`` are known when they have been written."""

    specs: list[JobSpec]
    ids: list[int] | None = None


def imported() -> bool:
    """Whether the program has imported OpenTelemetry."""
    return "opentelemetry.trace" in sys.modules


def active() -> bool:
    """Whether the program has set a tracer provider."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not hasattr(trace, "get_tracer_provider"):
        return False
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


@contextlib.contextmanager
def sending(jobs: Sending) -> Iterator[None]:
    """A producer span around an enqueue, whose context goes into the jobs' ``meta``."""
    if not active() or not jobs.specs:
        yield
        return
    from opentelemetry import trace  # noqa: PLC0415 - it is imported already

    first = jobs.specs[0]
    attributes = _common("send", "enqueue", first.queue) | {"pgqueue.task": first.task}
    if len(jobs.specs) > 1:
        attributes["messaging.batch.message_count"] = len(jobs.specs)
    with _tracer().start_as_current_span(
        f"enqueue {first.queue}", kind=trace.SpanKind.PRODUCER, attributes=attributes
    ) as span:
        jobs.specs = [_with_context(spec) for spec in jobs.specs]
        yield
        if jobs.ids and len(jobs.ids) == 1:
            span.set_attribute("messaging.message.id", str(jobs.ids[0]))


@contextlib.contextmanager
def running(handle: Any) -> Iterator[None]:
    """A consumer span around one run: a child of the enqueue's span; around a batch one with a link to each."""
    from opentelemetry import trace  # noqa: PLC0415 - it is imported already

    jobs = handle if isinstance(handle, Sequence) else None
    attributes = _common("process", "run", handle.queue) | {"pgqueue.task": handle.task}
    if jobs is None:
        parent, links = _context_of(handle.meta), []
        attributes |= {"messaging.message.id": str(handle.id), "pgqueue.attempt": handle.attempt}
    else:
        spans = [
            trace.get_current_span(context).get_span_context() for job in jobs if (context := _context_of(job.meta))
        ]
        parent, links = None, [trace.Link(span) for span in spans if span.is_valid]
        attributes["messaging.batch.message_count"] = len(jobs)
    with _tracer().start_as_current_span(
        f"run {handle.queue}", context=parent, kind=trace.SpanKind.CONSUMER, attributes=attributes, links=links,
        record_exception=False, set_status_on_exception=False,
    ) as span:  # fmt: skip
        try:
            yield
        except BaseException as error:
            run = current_run.get()
            if not isinstance(error, _OUR_VERBS) and not (run and run.releasing):
                kind = "JobTimeoutError" if run and run.timed_out else type(error).__name__
                with contextlib.suppress(BaseException):  # whatever the __str__ of a user's exception does
                    span.set_attribute("error.type", kind)
                    span.set_status(trace.StatusCode.ERROR)
                    span.record_exception(error)
            raise


def carried(meta: str | None) -> str | None:
    """The meta of a job with the current span's context instead of the enqueue's: for a child process."""
    if not active():
        return meta
    values = _injected()
    return orjson.dumps({**orjson.loads(meta or "{}"), **values}).decode() if values else meta


@contextlib.contextmanager
def attached(meta: str) -> Iterator[None]:
    """In a child process: what the handler traces belongs to the span that the worker has around this run."""
    from opentelemetry import context as contexts  # noqa: PLC0415 - it is imported already

    token = contexts.attach(_context_of(orjson.loads(meta)) or contexts.get_current())
    try:
        yield
    finally:
        contexts.detach(token)


def _common(kind: str, name: str, queue: str) -> dict[str, Any]:
    """OpenTelemetry's semantic conventions for messaging."""
    return {
        "messaging.system": "pgqueue",
        "messaging.destination.name": queue,
        "messaging.operation.type": kind,
        "messaging.operation.name": name,
    }


def _tracer() -> Any:
    from opentelemetry import trace  # noqa: PLC0415 - it is imported already

    return trace.get_tracer("pgqueue")


def _with_context(spec: JobSpec) -> JobSpec:
    """With the current span's context, unless the application has given one itself."""
    if spec.meta and KEYS[0] in orjson.loads(spec.meta):
        return spec
    try:
        return spec.with_meta(**_injected())
    except InvalidJobError:  # its meta is full: a trace must not be what makes an enqueue fail
        return spec


def _injected() -> dict[str, str]:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier


def _context_of(meta: Mapping[str, Any]) -> Any:
    """The context in a job's meta; None when there is none that is valid. Anybody may have written the meta."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier = {key: meta[key] for key in KEYS if isinstance(meta.get(key), str)}
    return TraceContextTextMapPropagator().extract(carrier) if KEYS[0] in carrier else None
