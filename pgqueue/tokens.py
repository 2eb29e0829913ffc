"""Tokens of the HTTP API: what a secret looks like and is kept as, and what its holder may do. No I/O."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, Self

from pgqueue.durations import Duration, parse_duration
from pgqueue.errors import InvalidJobError
from pgqueue.job import MAX_NAME_LENGTH, check_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

SCOPES: Final = ("enqueue", "work", "read", "admin")
EVERY_QUEUE: Final = ("*",)
PREFIX: Final = "pgq_"
MOST_GLOBS: Final = 100

_BYTES: Final = 32
_SECRET: Final = re.compile(rf"{PREFIX}[0-9a-f]{{{2 * _BYTES}}}")


def make_secret() -> str:
    """A new secret: ``pgq_`` and 256 random bits in hexadecimal, 68 characters."""
    return PREFIX + secrets.token_hex(_BYTES)


def is_secret(text: Any) -> bool:
    """Whether it looks like one; what does not needs no question to the database."""
    return isinstance(text, str) and _SECRET.fullmatch(text) is not None


def hash_secret(secret: str) -> bytes:
    """What the database holds in its place: SHA-256 of all its characters, 32 bytes.

    A slow hash with a salt is for passwords, which can be guessed. 256 random bits can't, at whatever speed, and a fast
    one lets each request be checked with one look into an index.
    """
    return hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """A token that may be created: everything was checked when this was made.

    Attributes:
        name: 1 to 128 characters.
        scopes: at least one of :data:`SCOPES`, in their order.
        queues: 1 to 100 globs of 1 to 128 characters; ``*`` stands for any characters, ``?`` for one.
        expires_in: how long it is valid from its creation on; None: until it is revoked.
    """

    name: str
    scopes: tuple[str, ...]
    queues: tuple[str, ...] = EVERY_QUEUE
    expires_in: timedelta | None = None

    @classmethod
    def make(
        cls, name: str, scopes: Iterable[str], queues: Iterable[str] = EVERY_QUEUE, expires_in: Duration | None = None
    ) -> Self:
        """Check and convert what a person wrote.

        Raises:
            InvalidJobError: one of them has no meaning; the message names it.
        """
        return cls(
            check_text(name, "a token's name", MAX_NAME_LENGTH),
            _check_scopes(_listed(scopes, "scopes")),
            _check_globs(_listed(queues, "queues")),
            None if expires_in is None else _check_expiry(expires_in),
        )


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token as the database holds it, without its hash. Times are in UTC.

    Attributes:
        id: new for each token: two may have had the same name, one after the other.
        name: 1 to 128 characters; unique among those that were not revoked.
        scopes: what it may do: some of enqueue, work, read and admin, which implies the others.
        queues: where: globs of which one has to match.
        created_at: when it was created.
        expires_at: from when on it is refused; None: never.
        last_used_at: when a request last came with it, give or take a minute; None: never.
        revoked_at: when it was revoked; None: it was not.
        expired: it was past ``expires_at`` by the server's clock when this was read.
    """

    id: int
    name: str
    scopes: tuple[str, ...]
    queues: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    expired: bool = False

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> Self:
        """From the columns of list_tokens.sql, in their order."""
        facts = dict(zip(cls.__slots__, row, strict=True))
        for name in ("scopes", "queues"):
            facts[name] = tuple(facts[name])
        for name in ("created_at", "expires_at", "last_used_at", "revoked_at"):
            facts[name] = facts[name] and facts[name].astimezone(UTC)
        return cls(**facts)

    def allows(self, scope: str, queue: str | None = None) -> bool:
        """Whether its holder may do this.

        Args:
            scope: enqueue, work, read or admin.
            queue: the queue that it is about. None asks only for the scope, which is not enough where the answer shows
                jobs of any queue.

        Raises:
            ValueError: there is no such scope.
        """
        if scope not in SCOPES:
            raise ValueError(f"{scope!r} is no scope; there are {', '.join(SCOPES)}")
        if self.expired or self.revoked_at is not None:
            return False
        if scope not in self.scopes and "admin" not in self.scopes:
            return False
        return queue is None or any(_matches(queue, glob) for glob in self.queues)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times in ISO 8601."""
        facts = {name: getattr(self, name) for name in self.__slots__}
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in facts.items()}


def _matches(queue: str, glob: str) -> bool:
    """Only ``*`` and ``?`` are special, so a bracket stands for itself; upper and lower case differ."""
    return fnmatchcase(queue, glob.replace("[", "[[]"))


def _listed(values: Iterable[str], what: str) -> list[str]:
    """A text is a list of its characters, which nobody means."""
    if isinstance(values, str):
        raise InvalidJobError(f"{what} must be a list of texts, not {values!r}")
    return list(values)


def _check_scopes(scopes: list[str]) -> tuple[str, ...]:
    for scope in scopes:
        if scope not in SCOPES:
            raise InvalidJobError(f"scopes must be among {', '.join(SCOPES)}; not {scope!r}")
    if not scopes:
        raise InvalidJobError(f"a token needs at least one of the scopes {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in scopes)


def _check_globs(globs: list[str]) -> tuple[str, ...]:
    if not 1 <= len(globs) <= MOST_GLOBS:
        raise InvalidJobError(f"queues must be 1 to {MOST_GLOBS} globs, not {len(globs)}")
    return tuple(dict.fromkeys(check_text(glob, "a glob of queues", MAX_NAME_LENGTH) for glob in globs))


def _check_expiry(expires_in: Duration) -> timedelta:
    period = parse_duration(expires_in, "expires_in")
    if not period:
        raise InvalidJobError("expires_in must be positive")
    return period
