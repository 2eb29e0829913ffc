"""Fixtures for tests of single statements."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from peers import Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def connect(dsn: str) -> Iterator[Callable[[], Peer]]:
    """A factory of peers."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Peer(dsn))


@pytest.fixture
def one(connect: Callable[[], Peer]) -> Peer:
    return connect()


@pytest.fixture
def two(connect: Callable[[], Peer]) -> Peer:
    return connect()
