"""Every test here tells a story: workers as processes, on a database of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scenarios.harness import LONG_LEASE, Story

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def lease() -> float:
    """How long the workers of a story hold a job without a renewal; a module in which leases run out has its own."""
    return LONG_LEASE


@pytest.fixture
def story(dsn: str, tmp_path: Path, lease: float) -> Iterator[Story]:
    told = Story(dsn, tmp_path, lease=lease)
    yield told
    told.end()
