"""A small TCP proxy before PostgreSQL, whose wire can be cut, silenced or slowed while a story goes on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_CHUNK = 65536


class Proxy:
    """Passes connections on. Its own thread and loop; every method may be called from the test.

    Modes of the wire: ``pass``; ``silent`` (both directions swallow, nobody hears of it: a peer behind a dead
    network); ``refuse`` (new connections are closed at once). ``cut_reply_after(text)`` lets one statement that
    contains ``text`` through and resets its connection in place of the reply.
    """

    def __init__(self, dsn: str) -> None:
        parts = conninfo_to_dict(dsn)
        self._target = (str(parts.get("host")), int(parts.get("port") or 5432))
        self.mode = "pass"
        self.delay = 0.0
        self.cut = 0  # replies that were cut
        self._cut_after: bytes | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port: int = self._call(self._start())
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self.port)

    def close(self) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def reset(self) -> None:
        """Cut every connection with an RST."""
        self._call(self._reset_all())

    def cut_reply_after(self, text: str) -> None:
        """The next statement with this text reaches the server; its answer reaches nobody."""
        self._cut_after = text.encode()

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _stop(self) -> None:
        self._server.close()
        await self._reset_all()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _reset_all(self) -> None:
        for writer in list(self._writers):
            _abort(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "refuse":
            _abort(writer)
            return
        try:
            if self._target[0].startswith("/"):
                path = f"{self._target[0]}/.s.PGSQL.{self._target[1]}"
                upstream, to_server = await asyncio.open_unix_connection(path)
            else:
                upstream, to_server = await asyncio.open_connection(*self._target)
        except OSError:
            _abort(writer)
            return
        wire = _Wire(self)
        self._writers |= {writer, to_server}
        try:
            await asyncio.gather(
                self._pump(reader, to_server, wire.to_server), self._pump(upstream, writer, wire.to_client)
            )
        finally:
            for one in (writer, to_server):
                self._writers.discard(one)
                _abort(one)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inspect: Callable[[bytes], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self.mode == "silent":
                    continue
                if not inspect(data):
                    break
                writer.write(data)
                await writer.drain()
        _abort(writer)


class _Wire:
    """One connection's part in ``cut_reply_after``."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._doomed = False
        self._known: set[bytes] = set()  # statements prepared here under a name: they go by it later

    def to_server(self, data: bytes) -> bool:
        text = self._proxy._cut_after
        if text is None:
            return True
        if text in data:
            self._doomed, self._proxy._cut_after = True, None
        return True

    def to_client(self, data: bytes) -> bool:
        if self._doomed:
            self._proxy.cut += 1
            return False
        return True


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with an RST."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError, RuntimeError):
        writer.transport.abort()
