"""An artificial distance: a proxy before PostgreSQL that passes everything on, later."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import selectors
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

_SPAWN = multiprocessing.get_context("spawn")
_CHUNK = 65536


@contextlib.contextmanager
def delayed(dsn: str, round_trip: float) -> Iterator[str]:
    """The same database so many seconds away, there and back; the proxy is a process of its own."""
    parts = conninfo_to_dict(dsn)
    target = (str(parts.get("host") or "localhost"), int(parts.get("port") or 5432))
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_proxy, args=(theirs, target, round_trip / 2), daemon=True)
    process.start()
    theirs.close()
    try:
        yield make_conninfo(dsn, host="127.0.0.1", hostaddr="127.0.0.1", port=ours.recv(), sslmode="disable")
    finally:
        process.kill()
        process.join()


def _proxy(pipe: Connection, target: tuple[str, int], delay: float) -> None:
    """For ever. By select(2): epoll's timeouts are whole milliseconds."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_serve(pipe, target, delay))


async def _serve(pipe: Connection, target: tuple[str, int], delay: float) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = target
        if host.startswith("/"):
            from_server, to_server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            from_server, to_server = await asyncio.open_connection(host, port)
        await asyncio.gather(_pump(reader, to_server, delay), _pump(from_server, writer, delay))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Each chunk is late, but does not wait for the one before it: a distance, not a narrow pipe."""
    loop = asyncio.get_running_loop()
    late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    sending = asyncio.create_task(_send(writer, late))
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            late.put_nowait((loop.time() + delay, data))
    late.put_nowait((loop.time() + delay, b""))
    await sending


async def _send(writer: asyncio.StreamWriter, late: asyncio.Queue[tuple[float, bytes]]) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while True:
            due, data = await late.get()
            if (pause := due - loop.time()) > 0:
                await asyncio.sleep(pause)
            if not data:
                break
            writer.write(data)
            await writer.drain()
    writer.close()
