"""Tracing: a trace goes from the enqueue through the job's meta to its run; where nobody traces there is nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator  # noqa: TC003 - fixtures are looked at
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from pgqueue import Cancel, Fixed, JobSpec
from pgqueue.job import MAX_META_BYTES
from worker import handlers
from worker.support import in_state, until, working
from worker.test_executor import KINDS, Kind, register, slots_for

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from pgqueue import App


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """OpenTelemetry has one provider per process; here it is one for the test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def of_kind(spans: InMemorySpanExporter, kind: SpanKind) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.kind is kind]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_is_a_child_of_its_enqueue(app: App, spans: InMemorySpanExporter, kind: Kind) -> None:
    task = register(app, kind, handlers.return_value, queue="emails")
    with trace.get_tracer("test").start_as_current_span("request"):
        job = await task.options(meta={"own": 1}).enqueue(kind="set")
    async with working(app, slots=slots_for(kind)):
        assert await job.result(60) == ["one"]
    meta = (await job.refresh()).meta
    assert meta["own"] == 1
    (request,) = of_kind(spans, SpanKind.INTERNAL)
    (producer,) = of_kind(spans, SpanKind.PRODUCER)
    (consumer,) = of_kind(spans, SpanKind.CONSUMER)
    assert meta["traceparent"].startswith(f"00-{producer.context.trace_id:032x}-{producer.context.span_id:016x}-")
    assert producer.parent is not None
    assert producer.parent.span_id == request.context.span_id
    assert consumer.parent is not None
    assert consumer.parent.span_id == producer.context.span_id
    assert consumer.context.trace_id == request.context.trace_id
    assert (producer.name, consumer.name) == ("enqueue emails", "run emails")
    assert dict(producer.attributes or {}) == {
        "messaging.system": "pgqueue", "messaging.destination.name": "emails", "messaging.operation.type": "send",
        "messaging.operation.name": "enqueue", "pgqueue.task": task.name, "messaging.message.id": str(job.id),
    }  # fmt: skip
    assert dict(consumer.attributes or {}) == {
        "messaging.system": "pgqueue", "messaging.destination.name": "emails", "messaging.operation.type": "process",
        "messaging.operation.name": "run", "pgqueue.task": task.name, "messaging.message.id": str(job.id),
        "pgqueue.attempt": 1,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_what_the_handler_traces_is_below_the_run(app: App, spans: InMemorySpanExporter, kind: Kind) -> None:
    def inner() -> None:
        with trace.get_tracer("test").start_as_current_span("inner"):
            pass

    task = register(app, kind, inner)
    async with working(app):
        for _ in range(2):
            await (await task.enqueue()).result(10)
    below = [span.parent.span_id for span in of_kind(spans, SpanKind.INTERNAL) if span.parent]
    assert below == [span.context.span_id for span in of_kind(spans, SpanKind.CONSUMER)]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exception_is_recorded_with_every_attempt(app: App, spans: InMemorySpanExporter, kind: Kind) -> None:
    task = register(app, kind, handlers.raise_error, max_attempts=2, retry=Fixed(0))
    async with working(app, slots=slots_for(kind)):
        await in_state(await task.enqueue(kind="plain"), "dead", within=60)
        await in_state(await task.enqueue(kind="broken str"), "dead", within=60)
    runs = of_kind(spans, SpanKind.CONSUMER)
    assert [(run.attributes or {})["pgqueue.attempt"] for run in runs] == [1, 2, 1, 2]
    assert [(run.attributes or {})["error.type"] for run in runs[:2]] == ["ValueError"] * 2
    assert {run.status.status_code for run in runs} == {StatusCode.ERROR}
    assert [event.name for event in runs[0].events] == ["exception"]


async def test_a_snooze_or_cancel_is_no_error_and_a_timeout_has_its_name(app: App, spans: InMemorySpanExporter) -> None:
    import asyncio

    @app.task(name="t", max_attempts=1)
    async def task(how: str) -> None:
        if how == "cancel":
            raise Cancel
        await asyncio.sleep(60)

    async with working(app) as worker:
        await in_state(await task.enqueue("cancel"), "cancelled")
        await in_state(await task.options(timeout=0.05).enqueue("late"), "dead")
        await task.options(max_attempts=2).enqueue("stop")
        await until(lambda: worker.executor.running, "it runs")
    cancelled, late, stopped = of_kind(spans, SpanKind.CONSUMER)
    assert cancelled.status.status_code is stopped.status.status_code is StatusCode.UNSET
    assert (late.attributes or {})["error.type"] == "JobTimeoutError"


async def test_many_jobs_have_one_enqueue_and_a_batch_links_to_each(app: App, spans: InMemorySpanExporter) -> None:
    @app.task(name="numbers", batch=3, linger="1m")
    async def numbers(items: list[int]) -> None: ...

    one = await numbers.enqueue(1)
    many = await app.enqueue_many([numbers.job(2), numbers.job(3)])
    async with working(app):
        for job in [one, *many]:
            await in_state(job, "completed")
    first, second = of_kind(spans, SpanKind.PRODUCER)
    (run,) = of_kind(spans, SpanKind.CONSUMER)
    assert (second.attributes or {})["messaging.batch.message_count"] == 2
    assert (run.attributes or {})["messaging.batch.message_count"] == 3
    assert run.parent is None
    assert sorted(link.context.span_id for link in run.links) == sorted(
        [first.context.span_id, second.context.span_id, second.context.span_id]
    )


async def test_the_spans_in_a_child_process_belong_to_its_run(app: App, spans: InMemorySpanExporter) -> None:
    task = app.task(isolation="process")(handlers.current_trace)
    async with working(app, slots=1):
        assert await (await task.enqueue()).result(60) == [False, None], "it does not trace, so nothing was imported"
        await (await task.enqueue(load=True)).result(60)
        answer = await (await task.enqueue()).result(60)
    *_, run = of_kind(spans, SpanKind.CONSUMER)
    assert answer == [True, f"{run.context.trace_id:032x}-{run.context.span_id:016x}"]


@pytest.mark.parametrize("meta", [{"traceparent": 7}, {"traceparent": "nonsense"}, {"tracestate": "a=b"}])
async def test_a_context_that_is_none_makes_a_trace_of_its_own(
    app: App, spans: InMemorySpanExporter, meta: dict[str, Any]
) -> None:
    app.task(name="t")(lambda: None)
    job_id = await app.aclient.enqueue(JobSpec.make("t", meta=meta))
    async with working(app):
        assert await app.job(job_id).result(10) is None
    (run,) = of_kind(spans, SpanKind.CONSUMER)
    assert run.parent is None


async def test_a_trace_never_makes_an_enqueue_fail_nor_replaces_one(app: App, spans: InMemorySpanExporter) -> None:
    task = app.task(name="t")(lambda: None)
    full = {"x": "y" * (MAX_META_BYTES - 10)}
    assert (await (await task.options(meta=full).enqueue()).refresh()).meta == full
    own = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    assert task.options(meta=own).enqueue_sync().refresh_sync().meta == own
    assert len(of_kind(spans, SpanKind.PRODUCER)) == 2


async def test_without_a_provider_there_is_no_span_and_no_meta(app: App) -> None:
    task = app.task(name="t")(lambda: None)
    job = await task.enqueue()
    async with working(app) as worker:
        assert worker.executor._tasks is app.tasks
        assert await job.result(10) is None
    assert (await job.refresh()).meta == {}


def test_nothing_of_opentelemetry_is_imported_by_pgqueue(dsn: str) -> None:
    program = """
import asyncio, sys
import pgqueue
app = pgqueue.App(sys.argv[1])
task = app.task(name="t")(lambda: None)
async def main():
    worker = pgqueue.Worker(app)
    running = asyncio.create_task(worker.run())
    await (await task.enqueue()).result(10)
    worker.stop()
    await running
    await app.aclose()
task.enqueue_sync()
asyncio.run(main())
found = [name for name in sys.modules if name.startswith("opentelemetry")]
assert not found, found
"""
    subprocess.run([sys.executable, "-c", program, dsn], check=True, timeout=60)
