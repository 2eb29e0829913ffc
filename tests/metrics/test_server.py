"""The pages of a worker's port: what scrapers and probes do to them."""

from __future__ import annotations

import logging
import queue
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from pgqueue.metrics.server import Answer, PageServer

if TYPE_CHECKING:
    from collections.abc import Iterator


class Slow:
    """A page that is made when the gate opens; by which thread."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: queue.Queue[threading.Thread] = queue.Queue()

    def __call__(self, _accept: str) -> Answer:
        self.threads.put(threading.current_thread())
        assert self.gate.wait(30)
        return Answer(200, b"x" * 10_000_000)


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def server(slow: Slow) -> Iterator[PageServer]:
    server = PageServer("127.0.0.1", 0, {"/slow": slow, "/fine": lambda accept: Answer(200, accept.encode())})
    server.start()
    yield server
    server.stop()


def ask(server: PageServer, words: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), 30)
    client.sendall(f"{words} HTTP/1.0\r\nAccept: a/b\r\n\r\n".encode())
    return client


def test_a_scraper_that_does_not_wait_for_its_page_leaves_no_traceback_on_stderr(
    server: PageServer, slow: Slow, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    """Where logs are JSON, its lines would be none."""
    caplog.set_level(logging.DEBUG, "pgqueue.metrics.server")
    client = ask(server, "GET /slow")
    thread = slow.threads.get(timeout=30)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends a reset
    client.close()
    slow.gate.set()
    thread.join(30)
    assert "a page could not be sent" in caplog.text
    assert capfd.readouterr().err == ""


def test_a_head_is_a_page_without_its_body(server: PageServer):
    with ask(server, "GET /fine") as client:
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.0 200 OK", b"a/b")
    with ask(server, "HEAD /fine") as client:
        answer = client.makefile("rb").read()
    assert answer.endswith(b"Content-Length: 3\r\n\r\n")
