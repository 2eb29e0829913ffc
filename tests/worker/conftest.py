"""An app on a fresh database, whose invariants are checked when the test is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from invariants import check

from worker.support import make_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgqueue import App


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[App]:
    app = make_app(dsn)
    yield app
    await app.aclose()
    check(dsn)
