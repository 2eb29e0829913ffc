"""The pages of a worker's metrics port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgqueue.metrics import catalogue
from pgqueue.metrics.database import DatabaseMetrics
from pgqueue.metrics.exposition import counted, gauge, render
from pgqueue.metrics.server import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue.app import App
    from pgqueue.metrics.board import Board
    from pgqueue.metrics.exposition import Page


def worker_pages(board: Board, app: App) -> dict[str, Callable[[str], Answer]]:
    """By path; each takes the Accept header.

    What the database knows is a page of its own: it is the same at every worker, and would be counted once for each.
    """
    database = DatabaseMetrics(app)

    def metrics(accept: str) -> Answer:
        gauges = [
            gauge(catalogue.BELL_UP, {(): board.bell_up}),
            gauge(catalogue.OWN_SLOTS, board.slots),
        ]
        return _answer(render([*counted(catalogue.COUNTED.values(), board.series()), *gauges], accept))

    return {
        "/metrics": metrics,
        "/metrics/database": lambda accept: _answer(database.read_sync(accept)),
        "/livez": lambda _: _probe(board.trouble()),
        "/readyz": lambda _: _probe(board.unready()),
    }


def _answer(page: Page) -> Answer:
    return Answer(200, page.body, page.content_type)


def _probe(reasons: list[str]) -> Answer:
    return Answer(503 if reasons else 200, ("\n".join(reasons or ["ok"]) + "\n").encode())
