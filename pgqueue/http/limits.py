"""What a client may ask of the server: not too much in one request, and not too many requests at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pgqueue.http.problems import ProblemError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_REMEDY: Final = "send Content-Type: application/json; curl does with --json, or -H 'Content-Type: application/json'"


class BodyTooLargeError(Exception):
    """Whoever reads the body gets this; the answer is :class:`Limited`'s."""


class Limited:
    """Middleware: 413 for a body that is too large, 415 for one that is not JSON, 429 when too much is under way.

    A page in a browser can send any other type to a server on its own machine without being asked; JSON it can't.

    Args:
        app: what answers the others.
        most_bytes: of a body.
        most_requests: under way at once.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int, most_requests: int) -> None:
        self._app = app
        self._most_bytes = most_bytes
        self._most_requests = most_requests
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._most_requests and not scope["path"].endswith(("/health", "/livez", "/readyz")):
            await ProblemError(429, "too_busy", "too many requests are under way").response()(scope, receive, send)
            return
        if scope["method"] in _WITH_BODY and not _says_json(scope):
            await ProblemError(415, "not_json", _REMEDY).response()(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._measured(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _measured(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > self._most_bytes:
            await self._too_large().response()(scope, receive, send)
            return
        seen, begun = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most_bytes:
                raise BodyTooLargeError  # the framework answers this with 400, which goes no further
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            if seen <= self._most_bytes or begun:
                begun = True
                await send(message)

        await self._app(scope, counted, noted)
        if seen > self._most_bytes and not begun:
            await self._too_large().response()(scope, receive, send)

    def _too_large(self) -> ProblemError:
        return ProblemError(413, "body_too_large", f"a body has at most {self._most_bytes} bytes")


def _says_json(scope: Scope) -> bool:
    """Whether the body is JSON, or there is none."""
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json")):
        return True
    return headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers
