"""Which names the server answers to as long as it has no token: those that no page in a browser can make its own."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pgqueue import App, Client, Settings
from pgqueue.connection import Database
from pgqueue.http import LOOPBACK, auth, create_app
from server.conftest import check_problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.conftest import Api, Process

OTHERS = [
    "rebound.example", "rebound.example:8080", "127.0.0.1.rebound.example", "localhost.rebound.example:80",
    "127.0.0.1@rebound.example", "[::1].rebound.example", "[::2]", "127.0.0.2", "localhost.", "",
]  # fmt: skip
CALLS: list[tuple[str, str, Any]] = [
    ("GET", "/jobs", None), ("POST", "/jobs", {}), ("POST", "/jobs/lease", {}), ("POST", "/jobs/1/ack", {}),
    ("GET", "/metrics", None), ("GET", "/openapi.json", None), ("PATCH", "/queues/health", {}),
    ("GET", "/schedules/livez", None), ("GET", "/nothing", None),
]  # fmt: skip


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080"])
def test_this_machines_own_names_are_answered(api: Api, host: str):
    assert api.get("/queues", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", OTHERS)
def test_any_other_name_is_refused_and_told_the_remedy(api: Api, host: str):
    problem = check_problem(api.get("/queues", headers={"Host": host}), 403, "host_refused")
    assert "pgq token create" in problem["detail"]
    assert "rebound" not in problem["detail"]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_no_call_is_left_open(api: Api, method: str, path: str, body: Any):
    answer = api.request(method, path, json=body, headers={"Host": "rebound.example"})
    check_problem(answer, 403, "host_refused")


def test_the_health_calls_answer_to_every_name(api: Api):
    for path in ("/livez", "/readyz", "/health"):
        assert api.get(path, headers={"Host": "10.0.0.7:8080"}).status_code == 200


def test_who_names_two_hosts_or_none_is_refused(api: Api):
    port = api.base_url.port
    assert port is not None
    for head in ("Host: localhost\r\nHost: rebound.example\r\n", ""):
        with socket.create_connection(("127.0.0.1", port), 10) as line:
            line.sendall(f"GET /queues HTTP/1.0\r\n{head}\r\n".encode())
            said = b""
            while part := line.recv(4096):
                said += part
        assert said.split(b" ")[1] in {b"400", b"403"}, said


def test_with_a_token_any_name_is_answered(api: Api, dsn: str, monkeypatch: pytest.MonkeyPatch):
    """Then the token says who may do what, which a page can't know."""
    monkeypatch.setattr(auth, "_REMEMBERED", 0.05)
    database = Database(lambda: dsn)
    secret = Client(database).create_token("a", ["read"])[1]
    database.close()
    check_problem(api.get("/queues", headers={"Host": "q.example"}), 401, "token_missing")
    headers = {"Host": "q.example", "Authorization": f"Bearer {secret}"}
    assert api.get("/queues", headers=headers).status_code == 200


async def test_without_the_database_nobody_is_let_in_and_health_is_told():
    nowhere = App(settings=Settings(dsn="postgresql://postgres@127.0.0.1:1/nowhere"))
    transport = httpx.ASGITransport(create_app(nowhere, hosts=LOOPBACK))
    async with httpx.AsyncClient(transport=transport, base_url="http://rebound.example") as client:
        check_problem(await client.get("/queues"), 503, "database_unreachable")
        assert (await client.get("/livez")).status_code == 200
    await nowhere.aclose()


def test_a_server_answers_to_the_host_that_it_was_given(serve: Callable[..., Process], dsn: str):
    one = serve("--port", 0, "--host", "127.0.0.2", PGQUEUE_DSN=dsn)
    assert one.api.get("/queues").status_code == 200
    assert one.api.get("/queues", headers={"Host": "localhost"}).status_code == 200
    check_problem(one.api.get("/queues", headers={"Host": "rebound.example"}), 403, "host_refused")


def test_a_site_that_mounts_it_decides_for_itself(running: Callable[..., Api]):
    assert running().get("/queues", headers={"Host": "shop.example"}).status_code == 200
