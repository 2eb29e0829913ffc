"""Jobs as COPY takes them, the fastest way in. No I/O."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final

from pgqueue.errors import InvalidJobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pgqueue.job import JobSpec

_BLOCK: Final = 1_000  # rows; made while the server takes in the ones before
_MOST: Final = 20 * _BLOCK  # rows of one COPY: their ids are drawn before it begins
_SOON: Final = timedelta(minutes=1)  # a worker asleep looks ahead so far by itself
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_NULL: Final = struct.pack("!i", -1)


def check_connection(connection: Any, kind: type) -> None:
    """COPY needs psycopg's own connection; raises TypeError."""
    if not isinstance(connection, kind):
        raise TypeError(f"copy=True needs a psycopg {kind.__name__}, not a {type(connection).__name__}")


def check_copyable(specs: Iterable[JobSpec]) -> list[JobSpec]:
    """All of them, before anything is sent: an error within a COPY would end the caller's transaction."""
    checked = list(specs)
    for nth, spec in enumerate(checked):
        _check(spec, nth)
    return checked


def _check(spec: JobSpec, nth: int) -> None:
    """COPY can't answer a conflict with the existing id."""
    if spec.unique_key is not None or spec.depends_on:
        raise InvalidJobError(f"job {nth}: unique_key and depends_on do not go together with copy=True")


class Replayed:
    """What an iterator gives, as often as it is asked for: a transaction may have to be done again.

    What the iterator raised it raises each time: after an error, an iterator ends as if it had given everything.
    """

    def __init__(self, items: Iterable[JobSpec]) -> None:
        self._length = length_hint(items)
        self._items = iter(items)
        self._seen: list[JobSpec] = []
        self._raised: BaseException | None = None

    def __length_hint__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[JobSpec]:
        yield from self._seen
        if self._raised is not None:
            raise self._raised
        try:
            for item in self._items:
                self._seen.append(item)
                yield item
        except GeneratorExit:
            raise
        except BaseException as error:
            self._raised = error
            raise


class Rows:
    """Jobs on their way into the table, by as many COPYs as it takes: made, encoded and sent a block at a time.

    Attributes:
        ids: of the jobs that have been given out, in their order.
        queues: those whose workers are to be woken.
    """

    def __init__(self, specs: Iterable[JobSpec], now: datetime) -> None:
        self.ids: list[int] = []
        self.queues: set[str] = set()
        self._length = length_hint(specs)
        self._specs = iter(specs)
        self._now = now
        self._block = self._pull()

    def _pull(self) -> list[JobSpec]:
        return list(islice(self._specs, _BLOCK))

    def parts(self) -> Iterator[int]:
        """For each COPY, how many ids to draw; of an iterator whose length is unknown, up to twice what it takes."""
        while self._block:
            given = len(self.ids)
            more = max(self._length - given, given, _BLOCK) if len(self._block) == _BLOCK else len(self._block)
            yield min(more, _MOST)

    def encoded(self, ids: Sequence[int]) -> Iterator[bytes]:
        """The next rows in COPY's binary format (PostgreSQL manual, COPY, Binary Format), a block at a time.

        Written by hand because it costs a fifth of building each row from adapted values. What stands around the
        payload is the same for most rows of a block.
        """
        yield b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
        for begin in range(0, len(ids), _BLOCK):
            own = ids[begin : begin + len(self._block)]
            yield self._encode(self._block, own)
            self.ids += own
            self._block = self._pull()
            if not self._block:
                break
        yield struct.pack("!h", -1)

    def _encode(self, specs: list[JobSpec], ids: Sequence[int]) -> bytes:
        known: dict[object, tuple[struct.Struct, bytes, bytes]] = {}
        rows: list[bytes] = []
        task = kind = None
        for nth, (spec, job_id) in enumerate(zip(specs, ids, strict=True)):
            if spec[2:] != kind or spec.task != task:  # else it is as the one before, but for its payload
                task, kind = spec.task, spec[2:]
                around = known.get((task, kind))
                if around is None:
                    _check(spec, len(self.ids) + nth)
                    name = _text(task)
                    around = known[task, kind] = struct.Struct(f"!hiq{len(name)}sib"), name, self._after_payload(spec)
                before, name, after = around
            payload = spec.payload.encode()
            rows += before.pack(11, 8, job_id, name, len(payload) + 1, 1), payload, after
        return b"".join(rows)

    def _after_payload(self, spec: JobSpec) -> bytes:
        run_at = spec.run_at or (self._now if spec.delay is None else self._now + spec.delay)
        if run_at - self._now <= _SOON:
            self.queues.add(spec.queue)
        meta = None if spec.meta is None else spec.meta.encode()
        return b"".join((
            _text(spec.queue),
            struct.pack("!ihiqih", 2, spec.priority, 8, _microseconds(run_at - _EPOCH), 2, spec.max_attempts),
            _NULL if spec.timeout is None else struct.pack("!iqii", 16, _microseconds(spec.timeout), 0, 0),
            _NULL,  # unique_key
            _NULL if meta is None else struct.pack("!ib", len(meta) + 1, 1) + meta,
            _NULL if spec.group_key is None else _text(spec.group_key),
        ))  # fmt: skip


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("!i", len(data)) + data


def _microseconds(delta: timedelta) -> int:
    return delta // timedelta(microseconds=1)
