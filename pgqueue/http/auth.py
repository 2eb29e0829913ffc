"""Who may do what: bearer tokens with scopes and queues. As long as there is no token, everybody may do everything."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from pgqueue.http.problems import ProblemError
from pgqueue.tokens import hash_secret, is_secret

if TYPE_CHECKING:
    from pgqueue.client import AsyncClient
    from pgqueue.tokens import TokenRecord

_REMEMBERED: Final = 5.0  # seconds: that a token was revoked, or that the first was created, counts after this time
_MOST_REMEMBERED: Final = 1_000


class Caller:
    """Who makes a request: what the token allows, or everything."""

    def __init__(self, token: TokenRecord | None) -> None:
        self._token = token

    @property
    def unlimited(self) -> bool:
        """Whether every queue is allowed."""
        return self._token is None or "*" in self._token.queues

    def may(self, queue: str) -> bool:
        """Whether this queue is allowed."""
        return self._token is None or any(self._token.allows(scope, queue) for scope in self._token.scopes)

    def check(self, *queues: str) -> None:
        """Raises ProblemError (403) for a queue that is not allowed."""
        for queue in queues:
            if not self.may(queue):
                raise ProblemError(403, "forbidden", f"the token does not allow the queue {queue!r}")


class Tokens:
    """Looks tokens up, and remembers the answers for 5 seconds."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._needed = False
        self._asked_at = -_REMEMBERED
        self._known: dict[bytes, tuple[float, TokenRecord | None]] = {}

    async def needed(self) -> bool:
        """Whether there are tokens at all. Once there were, it stays so: deleting the rows opens no running server."""
        if not self._needed and time.monotonic() - self._asked_at > _REMEMBERED:
            self._needed = await self._client.has_tokens() or self._needed  # a late answer takes nothing back
            self._asked_at = time.monotonic()
        return self._needed

    async def find(self, secret: str) -> TokenRecord | None:
        """The token; None when it is unknown, expired or revoked."""
        if not is_secret(secret):
            return None
        key = hash_secret(secret)  # no secret is kept
        at, found = self._known.get(key, (-_REMEMBERED, None))
        if time.monotonic() - at > _REMEMBERED:
            found = await self._client.find_token(secret)
            self._known.pop(key, None)
            while len(self._known) >= _MOST_REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = (time.monotonic(), found)
        return found


_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
_bearer: Final = HTTPBearer(auto_error=False, description="A token from `pgq token create`; none while there is none.")


async def authenticate(request: Request, scope: str) -> Caller:
    """The caller, who may do this.

    Raises:
        ProblemError: 401 without a token that is known, 403 with one that does not allow it.
    """
    tokens: Tokens = request.app.state.tokens
    if not await tokens.needed():
        return Caller(None)
    kind, _, secret = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not secret.strip():
        raise ProblemError(401, "token_missing", "send Authorization: Bearer TOKEN", headers=_CHALLENGE)
    token = await tokens.find(secret.strip())
    if token is None:
        raise ProblemError(401, "token_invalid", "the token is unknown, expired or revoked", headers=_CHALLENGE)
    if not token.allows(scope):
        raise ProblemError(403, "forbidden", f"the token lacks the scope {scope!r}")
    return Caller(token)


def needs(scope: str) -> Any:
    """A dependency: the caller, who may do this."""

    async def caller(request: Request, _given: Annotated[Any, Depends(_bearer)]) -> Caller:
        return await authenticate(request, scope)

    return Depends(caller)
