"""Under which names the server may be addressed while it has no token.

A page in a browser can have a name of its own point to 127.0.0.1 (DNS rebinding), and then talks to this machine's
servers as to its own site. Its requests still say that name as their Host.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pgqueue.errors import PgqueueError
from pgqueue.http.problems import ProblemError, of_error

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Receive, Scope, Send

    from pgqueue.http.auth import Tokens

LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")
_PORT: Final = re.compile(r":[0-9]*$", re.ASCII)
_HEALTH: Final = frozenset({"/health", "/livez", "/readyz"})


class KnownHosts:
    """Middleware: 403 for a request to another host than these, as long as no token is needed.

    Args:
        app: what answers the others.
        tokens: whether there are any.
        hosts: names and addresses; with any port.
    """

    def __init__(self, app: ASGIApp, *, tokens: Tokens, hosts: Collection[str]) -> None:
        self._app = app
        self._tokens = tokens
        self._hosts = frozenset(map(_name, hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. The health calls tell nothing, and must not ask the database."""
        if scope["type"] == "http" and not self._knows(scope) and not _is_health(scope):
            try:
                if not await self._tokens.needed():
                    raise self._refusal()
            except ProblemError as error:
                await error.response()(scope, receive, send)
                return
            except PgqueueError as error:
                await of_error(error).response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        asked = {_name(value.decode("latin-1")) for name, value in scope["headers"] if name == b"host"}
        return bool(asked) and asked <= self._hosts

    def _refusal(self) -> ProblemError:
        return ProblemError(
            403, "host_refused",
            f"as long as there is no token, this server answers only as {', '.join(sorted(self._hosts))}; "
            "to be asked under another name it needs one: pgq token create NAME --scope admin",
        )  # fmt: skip


def _is_health(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) in _HEALTH


def _name(host: str) -> str:
    """Without the port, in lower case; an IPv6 address in brackets."""
    host = host.strip().lower()
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else _PORT.sub("", host)
