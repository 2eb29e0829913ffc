"""Jobs as COPY takes them, the fastest way in. No I/O."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from pgqueue.errors import InvalidJobError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgqueue.job import JobSpec

_CHUNK: Final = 5_000
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_NULL: Final = struct.pack("!i", -1)


def check_copyable(specs: Sequence[JobSpec], connection: Any, kind: type) -> None:
    """COPY needs psycopg's own connection, and can't answer a conflict with the existing id."""
    if connection is not None and not isinstance(connection, kind):
        raise TypeError(f"copy=True needs a psycopg {kind.__name__}, not a {type(connection).__name__}")
    for nth, spec in enumerate(specs):
        if spec.unique_key is not None or spec.depends_on:
            raise InvalidJobError(f"job {nth}: unique_key and depends_on do not go together with copy=True")


def due_queues(specs: Sequence[JobSpec], now: datetime) -> list[str]:
    """The queues whose workers a batch is to wake: a worker asleep looks ahead for a minute itself."""
    soon = timedelta(minutes=1)
    return list({
        spec.queue for spec in specs
        if (spec.run_at - now if spec.run_at is not None else spec.delay or timedelta()) <= soon
    })  # fmt: skip


def copy_blocks(specs: Sequence[JobSpec], ids: Sequence[int], now: datetime) -> Iterator[bytes]:
    """The rows in COPY's binary format (PostgreSQL manual, COPY, Binary Format), a block at a time.

    Written by hand because it costs a fifth of building each row from adapted values. What stands around the payload is
    the same for most rows of a block.
    """
    yield b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
    for begin in range(0, len(specs), _CHUNK):
        known: dict[object, tuple[bytes, bytes]] = {}
        block: list[bytes] = []
        for spec, job_id in zip(specs[begin : begin + _CHUNK], ids[begin : begin + _CHUNK], strict=True):
            kind = (
                spec.task, spec.queue, spec.priority, spec.run_at, spec.delay, spec.max_attempts, spec.timeout,
                spec.meta, spec.group_key,
            )  # fmt: skip
            around = known.get(kind)
            if around is None:
                around = known[kind] = _text(spec.task), _after_payload(spec, now)
            payload = spec.payload.encode()
            block += (
                struct.pack("!hiq", 11, 8, job_id), around[0],
                struct.pack("!ib", len(payload) + 1, 1), payload, around[1],
            )  # fmt: skip
        yield b"".join(block)
    yield struct.pack("!h", -1)


def _after_payload(spec: JobSpec, now: datetime) -> bytes:
    run_at = spec.run_at or (now if spec.delay is None else now + spec.delay)
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
