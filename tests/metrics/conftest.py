"""The app of the worker's tests, on a fresh database."""

from worker.conftest import app

__all__ = ["app"]
