from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

import pgqueue

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def app(dsn: str) -> Iterator[pgqueue.App]:
    app = pgqueue.App(dsn)
    yield app
    app.close()


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    """The test's own: everything in it is rolled back."""
    with psycopg.connect(dsn) as connection:
        yield connection
        connection.rollback()
