"""Tasks of Django for test_django.py; a task must be at the top of a module."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import django
from django.db import connection

from pgqueue.errors import Cancel, Dead, InvalidPayloadError, Snooze

if django.VERSION >= (6,):
    from django.tasks import task
else:
    from django_tasks import task

context_of: list[Any] = []
threads: list[threading.Thread] = []
released = threading.Event()


class OddError(Exception):
    pass


@task()
def add(a: int, b: int = 1) -> int:
    return a + b


@task(priority=50, queue_name="mails")
async def aadd(a: int) -> dict[str, int]:
    return {"sum": a + 1}


@task(takes_context=True)
def with_context(context: Any) -> int:
    context_of.append(context)
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO users VALUES ('from a task')")
    return context.attempt


@task()
def fail(kind: str) -> object:
    if kind == "odd":
        raise OddError("odd")
    if kind == "value":
        raise ValueError("value")
    return object()


@task()
def end(how: str) -> None:
    raise {"dead": Dead, "cancel": Cancel, "payload": InvalidPayloadError}[how](how)


@task()
def snooze() -> None:
    raise Snooze("1h")


@task()
async def sleep() -> None:
    await asyncio.sleep(60)


@task()
def sleep_in_a_thread() -> None:
    threads.append(threading.current_thread())
    released.wait(60)
