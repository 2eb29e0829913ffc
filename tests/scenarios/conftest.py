"""Every test here tells a story: workers as processes, on a database of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scenarios.harness import Story

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def story(dsn: str, tmp_path: Path) -> Iterator[Story]:
    told = Story(dsn, tmp_path)
    yield told
    told.end()
