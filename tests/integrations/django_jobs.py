"""Tasks of Django for test_django.py; a task must be at the top of a module."""

from __future__ import annotations

from typing import Any

import django
from django.db import connection

if django.VERSION >= (6,):
    from django.tasks import task
else:
    from django_tasks import task

context_of: list[Any] = []


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
