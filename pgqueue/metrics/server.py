"""A few pages over HTTP, from threads of their own, so that they come also while the event loop is blocked."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Final

from pgqueue.errors import PgqueueError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

PLAIN: Final = "text/plain; charset=utf-8"
_SLOWEST: Final = 10.0  # seconds that a client may be silent


@dataclass(frozen=True, slots=True)
class Answer:
    """A page."""

    status: int
    body: bytes
    content_type: str = PLAIN


class PageServer:
    """Answers GET and HEAD.

    Args:
        host: the address to listen on.
        port: 0: any that is free.
        routes: for each path what answers it, from the Accept header.

    Raises:
        SettingsError: it can't listen there.
    """

    def __init__(self, host: str, port: int, routes: Mapping[str, Callable[[str], Answer]]) -> None:
        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True

            def server_bind(self) -> None:  # the standard one asks DNS for our name, which may take seconds
                TCPServer.server_bind(self)

            def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - its names
                log.debug("a page could not be sent: %r", sys.exception())  # the standard one prints a traceback

        class Handler(_Handler):
            pages = routes

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise SettingsError(f"can't listen on {host} port {port}: {error.strerror or error}") from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="pgqueue-pages", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    pages: Mapping[str, Callable[[str], Answer]]
    timeout = _SLOWEST
    server_version = "pgqueue"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a page; to HEAD without its body."""
        answer = self._answer()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(answer.body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """A probe comes every few seconds: nothing to be logged."""
        log.debug(format, *args)

    def _answer(self) -> Answer:
        route = self.pages.get(self.path.partition("?")[0])
        if route is None:
            return Answer(404, f"there are {', '.join(self.pages)}\n".encode())
        try:
            return route(self.headers.get("Accept", ""))
        except PgqueueError as error:
            return Answer(503, f"{error}\n".encode())
        except Exception as error:
            log.exception("the page %s could not be made", self.path)
            return Answer(500, f"{type(error).__name__}\n".encode())
