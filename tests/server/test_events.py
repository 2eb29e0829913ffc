"""Events: what a dashboard hears, and what that costs."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest

from pgqueue import Client, statements
from pgqueue.connection import Database
from pgqueue.errors import DatabaseUnreachableError
from pgqueue.http import auth, events
from server.conftest import Running, check_problem, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.conftest import Api, Process

FAST = {"interval": "0.2s"}


class Ear:
    """`with Ear(api, job_id=…) as ear`: listens in a thread; `ear.heard` is a list of (event, data)."""

    def __init__(self, api: Api, headers: dict[str, str] | None = None, **params: Any) -> None:
        self._api = httpx.Client(base_url=api.base_url, timeout=30)
        self._params, self._headers = {**FAST, **params}, headers or {}
        self.heard: list[tuple[str, Any]] = []
        self.comments = 0
        self.over = threading.Event()
        self.began = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.began.wait(20)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._api.close()

    def _listen(self) -> None:
        with self._api.stream("GET", "/events", params=self._params, headers=self._headers) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            self.began.set()
            name = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self.heard.append((name, json.loads(line.removeprefix("data: "))))
                elif line.startswith(":"):
                    self.comments += 1
                if self._stop.is_set():
                    return
        self.over.set()

    def told(self, event: str) -> list[Any]:
        return [data for name, data in list(self.heard) if name == event]

    def queues(self) -> dict[str, Any]:
        """As of the last event."""
        told = self.told("queues")
        return {one["queue"]: one for one in told[-1]["queues"]} if told else {}


@pytest.fixture(autouse=True)
def chatty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams say something often, so that a test that ends is noticed by its thread."""
    monkeypatch.setattr(events, "_HEARTBEAT", 0.3)


def test_queues_are_told_at_first_and_when_they_have_changed(api: Api):
    with Ear(api) as ear:
        until(lambda: ear.told("queues"), "the first event")
        assert ear.queues() == {}
        job_id = api.submit(1, queue="mail", delay="1h")
        until(lambda: ear.queues().get("mail", {}).get("scheduled") == 1, "the job is seen")
        assert ear.queues() == {one["queue"]: one for one in api.get("/queues").json()["queues"]}
        api.post(f"/jobs/{job_id}/cancel")
        until(lambda: ear.queues().get("mail", {}).get("cancelled") == 1, "its end is seen")
        comments = ear.comments
        until(lambda: ear.comments > comments + 1, "silence is filled")
        assert len(ear.told("queues")) <= 4, "what has not changed is not said again"


def test_a_job_is_told_until_it_ends(running: Callable[..., Api]):
    api = running(redact=["secret"])
    job_id = api.submit(1)
    with Ear(api, job_id=job_id) as ear:
        until(lambda: ear.told("job"), "the first event")
        job = api.lease()
        until(lambda: ear.told("job")[-1]["state"] == "running", "it runs")
        held = {"job_id": job_id, "lease_token": job["lease_token"], "progress": {"value": 0.5, "note": "half"}}
        api.post("/heartbeats", json={"leases": [held]})
        until(lambda: ear.told("job")[-1]["progress"], "its progress")
        api.post(f"/jobs/{job_id}/cancel")
        until(lambda: ear.told("job")[-1]["cancel_requested"], "somebody wants it to stop")
        api.end("ack", job)
        until(lambda: ear.told("job")[-1]["state"] == "completed", "its end")
        states = [job["state"] for job in ear.told("job")]
        assert list(dict.fromkeys(states)) == ["available", "running", "completed"]
        assert ear.told("job")[-1]["finished_at"] is not None
        assert {"value": 0.5, "note": "half"} in [job["progress"] for job in ear.told("job")]
        number = len(states)
        other = api.submit(2, queue="other")
        until(lambda: "other" in ear.queues(), "the queues are told on")
        assert len(ear.told("job")) == number
    with Ear(api, job_id=[job_id, other]) as ear:
        until(lambda: len(ear.told("job")) == 2, "both are told")


def test_a_job_that_is_deleted_is_told_as_gone(api: Api):
    job_id = api.submit(1, delay="1h")
    with Ear(api, job_id=job_id) as ear:
        until(lambda: ear.told("job"), "the first event")
        api.post("/jobs:bulk", json={"action": "purge", "queue": "default"})
        until(lambda: ear.told("job")[-1]["state"] is None, "it is gone")


def test_what_can_not_be_listened_to_is_a_problem(api: Api):
    check_problem(api.get("/events", params={"job_id": 99}), 404, "job_not_found")
    check_problem(api.get("/events", params={"interval": "0.1s"}), 422, "invalid_request")
    for wrong in ("2m", "often"):
        check_problem(api.get("/events", params={"interval": wrong}), 422, "invalid_job")
    check_problem(api.get("/events", params={"job_id": 0}), 422, "invalid_request")
    check_problem(api.get("/events", params={"job_id": [1] * 101}), 422, "invalid_request")


def test_many_who_listen_cost_one_look_and_nobody_none(dsn: str, monkeypatch: pytest.MonkeyPatch):
    looks: dict[str, list[float]] = {"queue_stats": [], "watch_jobs": []}
    for name, at in looks.items():
        original = getattr(statements, name)

        def counting(*given: Any, at: list[float] = at, original: Any = original, **named: Any) -> Any:
            at.append(time.monotonic())
            return original(*given, **named)

        monkeypatch.setattr(statements, name, counting)
    with (running := Running(dsn)) as api:
        ids = [api.submit(n, delay="1h") for n in range(3)]
        hub = running.app.state.events
        ears = [Ear(api, interval="0.5s", job_id=ids[n % 3]) for n in range(15)]
        for ear in ears:
            ear.__enter__()
        until(lambda: all(ear.told("queues") and ear.told("job") for ear in ears), "all hear")
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 3, "some looks")
        for name, at in looks.items():
            number = sum(moment >= began for moment in at)
            assert 3 <= number <= 7, (name, number)
        for ear in ears:
            ear.__exit__()
        until(lambda: not hub.queues.listeners and not hub.jobs.listeners, "all have gone")
        until(lambda: hub.queues._task.done() and hub.jobs._task.done(), "nobody looks")
        assert hub.queues.latest is None


async def test_a_look_that_takes_long_rests_ten_times_as_long():
    looks: list[float] = []
    enough = asyncio.Event()

    async def slow() -> int:
        looks.append(time.monotonic())
        if len(looks) == 3:
            enough.set()
        await asyncio.sleep(0.05)
        return 1

    shared = events.Shared(slow, "something")
    listeners = [events.Listener(0.01, set()) for _ in range(5)]
    for listener in listeners:
        shared.join(listener)
        await asyncio.sleep(0.02)
    await enough.wait()
    assert all(later - sooner >= 0.5 for sooner, later in pairwise(looks))
    await shared.stop()
    assert shared.latest is None


async def test_a_look_that_fails_is_made_again():
    answers: list[Any] = [DatabaseUnreachableError("away"), RuntimeError("broken"), 7]

    async def look() -> int:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    shared, listener = events.Shared(look, "something"), events.Listener(0.01, set())
    shared.join(listener)
    while shared.latest != 7:
        await listener.news.wait()
        listener.news.clear()
    await shared.stop()


def test_a_token_hears_of_its_queues_only_and_no_longer_than_it_may(api: Api, dsn: str, monkeypatch: Any):
    monkeypatch.setattr(auth, "_REMEMBERED", 0.05)
    monkeypatch.setattr(events, "_CHECKED_FOR", 0.3)
    mine, other = api.submit(1, queue="mail-bulk"), api.submit(1, queue="bills")
    database = Database(lambda: dsn)
    client = Client(database)
    reader = {"Authorization": f"Bearer {client.create_token('a', ['read'], ['mail*'])[1]}"}
    worker = {"Authorization": f"Bearer {client.create_token('b', ['work'])[1]}"}
    until(lambda: api.get("/events").status_code == 401, "a token is asked for")
    check_problem(api.get("/events", headers=worker), 403, "forbidden")
    check_problem(api.get("/events", headers=reader, params={"job_id": other}), 404, "job_not_found")
    with Ear(api, reader, job_id=mine) as ear:
        until(lambda: ear.told("queues") and ear.told("job"), "it hears")
        assert set(ear.queues()) == {"mail-bulk"}
        client.revoke_token("a")
        assert ear.over.wait(20), "a revoked token is heard no longer"
    database.close()


def test_a_stop_ends_the_streams_in_order(serve: Callable[..., Process], dsn: str):
    one = serve("--port", 0, PGQUEUE_DSN=dsn)
    with Ear(one.api, interval="60s") as patient, Ear(one.api) as ear:
        until(lambda: ear.told("queues") and patient.told("queues"), "they hear")
        began = time.monotonic()
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(20) == 0
        assert time.monotonic() - began < 10
        assert ear.over.wait(20)
        assert patient.over.wait(20)
    assert not [line for line in one.said if "Traceback" in line]


def test_a_server_that_stops_takes_no_listeners(dsn: str):
    with (running := Running(dsn)) as api:
        running.app.state.events.drain()
        check_problem(api.get("/events"), 503, "draining")


def test_a_restart_of_the_database_is_waited_for(private_server: Any):
    database = private_server(migrated=True)
    with Running(database.dsn) as api, Ear(api) as ear:
        until(lambda: ear.told("queues"), "the first event")
        database.restart("immediate")
        until(lambda: api.post("/jobs", json={"queue": "later"}).status_code == 201, "it takes jobs again")
        until(lambda: "later" in ear.queues(), "the stream goes on")
