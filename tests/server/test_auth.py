"""Tokens over HTTP: without any, everybody on this machine; with one, nobody without."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pgqueue import Client
from pgqueue.connection import Database
from pgqueue.http import auth
from pgqueue.tokens import hash_secret, is_secret, make_secret
from server.conftest import check_problem, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    from server.conftest import Api


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    database = Database(lambda: dsn)
    yield Client(database)
    database.close()


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_REMEMBERED", 0.05)


@pytest.fixture
def token(client: Client) -> Callable[..., dict[str, str]]:
    """`token("work", queues=["a*"])`: the headers of a request."""
    made = 0

    def make(*scopes: str, **options: Any) -> dict[str, str]:
        nonlocal made
        made += 1
        return {"Authorization": f"Bearer {client.create_token(f't{made}', scopes, **options)[1]}"}

    return make


CALLS = [
    ("POST", "/jobs", {}, "enqueue"),
    ("POST", "/jobs:batch", {"jobs": [{}]}, "enqueue"),
    ("POST", "/batches", {"jobs": [{}]}, "enqueue"),
    ("POST", "/jobs/1/cancel", None, "enqueue"),
    ("POST", "/jobs/1/retry", None, "enqueue"),
    ("GET", "/jobs/1", None, "read"),
    ("GET", "/jobs/1/tree", None, "read"),
    ("GET", "/jobs", None, "read"),
    ("GET", "/queues", None, "read"),
    ("GET", "/events?interval=1h", None, "read"),
    ("GET", "/schedules", None, "read"),
    ("GET", "/batches/1", None, "read"),
    ("POST", "/jobs/lease", {}, "work"),
    ("POST", "/jobs/1/ack", {}, "work"),
    ("POST", "/jobs/1/fail", {}, "work"),
    ("POST", "/jobs/1/release", {}, "work"),
    ("POST", "/jobs:finish", {"jobs": [{"job_id": 1, "lease_token": "1"}]}, "work"),
    ("POST", "/heartbeats", {"leases": []}, "work"),
    ("POST", "/jobs:bulk", {"action": "redrive"}, "admin"),
    ("PATCH", "/queues/q", {}, "admin"),
    ("POST", "/queues/q/pause", None, "admin"),
    ("POST", "/queues/q/resume", None, "admin"),
    ("PUT", "/schedules/s", {"expression": "@hourly", "task": "t"}, "admin"),
    ("DELETE", "/schedules/s", None, "admin"),
]


def test_the_list_of_calls_is_complete(api: Api):
    """So that no call comes without a scope."""
    alike = {"/schedules/{name}/pause", "/schedules/{name}/resume", "/batches/{batch_id}/cancel"}
    for path in api.get("/openapi.json").json()["paths"].keys() - alike - {"/livez", "/readyz", "/health", "/metrics"}:
        assert any(_same(path, known.partition("?")[0]) for _, known, _, _ in CALLS), path


def _same(pattern: str, path: str) -> bool:
    parts, given = pattern.split("/"), path.split("/")
    return len(parts) == len(given) and all(a == b or a.startswith("{") for a, b in zip(parts, given, strict=True))


@pytest.mark.parametrize(("method", "path", "body", "scope"), CALLS, ids=str)
def test_each_call_needs_its_scope(
    running: Callable[..., Api], token: Callable[..., dict[str, str]], method: str, path: str, body: Any, scope: str
):
    wrong = [token(other) for other in ("enqueue", "work", "read") if other != scope]
    right = [token(scope), token("admin")]
    api = running()
    missing = check_problem(api.request(method, path, json=body), 401, "token_missing")
    assert "Bearer" in missing["detail"]
    invalid = {"Authorization": "Bearer pgq_" + "0" * 64}
    answer = api.request(method, path, json=body, headers=invalid)
    check_problem(answer, 401, "token_invalid")
    assert answer.headers["www-authenticate"] == "Bearer"
    for headers in wrong:
        check_problem(api.request(method, path, json=body, headers=headers), 403, "forbidden")
    for headers in right:
        assert api.request(method, path, json=body, headers=headers).status_code not in {401, 403}


def test_health_needs_no_token(running: Callable[..., Api], token: Callable[..., dict[str, str]]):
    token("read")
    api = running()
    assert [api.get(path).status_code for path in ("/livez", "/readyz", "/health")] == [200] * 3


def test_a_token_for_some_queues_sees_and_does_nothing_elsewhere(api: Api, token: Callable[..., dict[str, str]]):
    own, other = api.submit(1, queue="mail-a"), api.submit(2, queue="bills")
    mine = token("enqueue", "work", "read", queues=["mail-*"])
    until(lambda: api.get("/jobs").status_code == 401, "tokens are needed now")
    api.headers.update(mine)
    assert api.post("/jobs", json={"queue": "mail-b"}).status_code == 201
    check_problem(api.post("/jobs", json={"queue": "bills"}), 403, "forbidden")
    check_problem(api.post("/jobs:batch", json={"jobs": [{"queue": "mail-b"}, {"queue": "x"}]}), 403, "forbidden")
    assert api.get(f"/jobs/{own}").status_code == 200
    for verb in ("cancel", "retry", "ack"):
        check_problem(api.post(f"/jobs/{other}/{verb}"), 404, "job_not_found")
    check_problem(api.get(f"/jobs/{other}"), 404, "job_not_found")
    check_problem(api.get("/jobs"), 403, "forbidden")
    assert len(api.get("/jobs", params={"queue": "mail-a"}).json()["jobs"]) == 1
    assert {one["queue"] for one in api.get("/queues").json()["queues"]} == {"mail-a", "mail-b"}
    check_problem(api.post("/jobs/lease", json={"queues": ["mail-a", "bills"]}), 403, "forbidden")
    job = api.lease(queues=["mail-a"])
    assert job["job_id"] == own
    assert api.end("ack", job).status_code == 200


def test_somebody_elses_lease_is_not_ended_with_a_token_for_another_queue(
    api: Api, token: Callable[..., dict[str, str]]
):
    api.submit(1, queue="bills")
    job = api.lease(queues=["bills"])
    mine = token("work", queues=["mail"])
    until(lambda: api.get("/jobs").status_code == 401, "tokens are needed now")
    api.headers.update(mine)
    for verb in ("ack", "fail", "release"):
        check_problem(api.end(verb, job), 404, "job_not_found")
    held = {"job_id": job["job_id"], "lease_token": job["lease_token"]}
    check_problem(api.post("/jobs:finish", json={"jobs": [held]}), 404, "job_not_found")
    check_problem(api.post("/heartbeats", json={"leases": [held]}), 404, "job_not_found")


def test_a_revoked_token_is_refused_within_seconds(api: Api, client: Client):
    _, secret = client.create_token("one", ["read"])
    _, other = client.create_token("two", ["read"])
    headers = {"Authorization": f"Bearer {secret}"}
    until(lambda: api.get("/jobs").status_code == 401, "tokens are needed now")
    assert api.get("/jobs", headers=headers).status_code == 200
    client.revoke_token("one")
    until(lambda: api.get("/jobs", headers=headers).status_code == 401, "it is revoked")
    assert api.get("/jobs", headers={"Authorization": f"Bearer {other}"}).status_code == 200
    client.revoke_token("two")
    assert api.get("/jobs").status_code == 401, "revoking the last one does not open the door"


@pytest.mark.parametrize("value", ["", "Bearer", "Basic abc", "Bearer \xff", "Bearer " + "x" * 10_000])
def test_what_is_no_token_is_refused(api: Api, token: Callable[..., dict[str, str]], value: str):
    token("read")
    until(lambda: api.get("/jobs").status_code == 401, "tokens are needed now")
    answer = api.get("/jobs", headers={"Authorization": value.encode("latin-1")})
    assert answer.status_code in {401, 431}


def test_who_deletes_all_tokens_does_not_open_a_server_that_has_asked_for_one(
    running: Callable[..., Api], token: Callable[..., dict[str, str]], database: psycopg.Connection[Any]
):
    headers = token("read")
    api = running()
    assert api.get("/jobs", headers=headers).status_code == 200
    database.execute("DELETE FROM pgqueue.tokens")
    until(lambda: api.get("/jobs", headers=headers).status_code == 401, "its token is gone")
    assert api.get("/jobs").status_code == 401
    assert running().get("/jobs").status_code == 200, "one that is started after that has nothing to ask for"


async def test_an_answer_from_before_the_first_token_takes_back_none_that_came_after():
    answers: list[asyncio.Future[bool]] = []

    class Client:
        async def has_tokens(self) -> bool:
            answers.append(asyncio.get_running_loop().create_future())
            return await answers[-1]

    tokens = auth.Tokens(Client())  # type: ignore[arg-type]
    early, late = (asyncio.create_task(tokens.needed()) for _ in range(2))
    await asyncio.sleep(0)
    answers[1].set_result(True)
    assert await late
    answers[0].set_result(False)
    await early
    assert await tokens.needed()


async def test_a_flood_of_what_is_no_token_costs_no_look_and_pushes_nobody_out(monkeypatch: pytest.MonkeyPatch):
    looks: list[str] = []

    class Client:
        async def find_token(self, secret: str) -> object:
            looks.append(secret)
            return token

    monkeypatch.setattr(auth, "_REMEMBERED", 3_600)
    monkeypatch.setattr(auth, "_MOST_REMEMBERED", 2)
    token, tokens = object(), auth.Tokens(Client())  # type: ignore[arg-type]
    one, other, third = (make_secret() for _ in range(3))
    for secret in (one, other, *(f"pgq_{n}" for n in range(10)), one, other):
        assert await tokens.find(secret) is (token if is_secret(secret) else None)
    assert looks == [one, other]
    monkeypatch.setattr(auth, "_REMEMBERED", -1)  # all is old: each is looked up again and takes its own place
    for secret in (one, other, one, other):
        await tokens.find(secret)
    assert len(tokens._known) == 2
    await tokens.find(third)
    assert hash_secret(third) in tokens._known
    assert len(tokens._known) == 2
