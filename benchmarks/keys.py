"""Keys and limits: the same drain of a full queue, claimed under the queue's lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.drain import REGIME as DRAIN
from benchmarks.drain import drain
from benchmarks.harness import Bench, Case, Measures, Regime, specs
from benchmarks.tasks import QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue import App, JobSpec

PLAIN = "no key, no limit"


def _limited(app: App) -> object:
    """A limit that never holds anything back: what remains is the way of claiming."""
    return app.client.limit_queue(QUEUE, max_running=1_000_000)


def _of_keys(share: float) -> Callable[..., list[JobSpec]]:
    """Jobs in lines; ``share``: keys per job."""

    def make(count: int, task: str) -> list[JobSpec]:
        keys = max(1, int(count * share))
        return [spec._replace(group_key=f"key{n % keys}") for n, spec in enumerate(specs(count, task))]

    return make


def _case(name: str, processes: int = 1, make: Callable[..., list[JobSpec]] = specs, *, limited: bool = False) -> Case:
    def run(bench: Bench) -> Measures:
        prepare: Callable[[App], object] = _limited if limited else lambda _app: None
        return drain(bench, "bench.noop", processes, bench.size.drain // 4, make=make, prepare=prepare)

    floor = None if name == PLAIN else PLAIN
    return Case(name, run, floor, when=lambda size: size.name != "smoke" or processes == 1)


REGIME = Regime(
    "keys",
    "Keys and limits: drain a full queue, no-op handlers, one process where not said, default settings",
    DRAIN.columns,
    (
        _case(PLAIN),
        _case("a limit that holds nothing back", limited=True),
        _case("a limit that holds nothing back, 2 processes", 2, limited=True),
        _case("as many keys as jobs", make=_of_keys(1)),
        _case("ten jobs per key, in order", make=_of_keys(0.1)),
        _case("ten jobs per key, in order, 2 processes", 2, _of_keys(0.1)),
    ),
)
