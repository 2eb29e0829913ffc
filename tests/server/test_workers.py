"""Lease over HTTP: what a worker in any language relies on."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import invariants
import psycopg
import pytest

from pgqueue.worker.marks import FullScans
from server.conftest import Running, check_problem, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.conftest import Api


def leases(database: psycopg.Connection[Any]) -> int:
    row = database.execute("SELECT count(*) FROM pgqueue.leases").fetchone()
    assert row is not None
    return int(row[0])


def test_lease_and_ack(api: Api, database: psycopg.Connection[Any], dsn: str):
    job_id = api.submit({"a": 1}, task="resize", meta={"b": 2}, max_retries=2, timeout="1m")
    began = datetime.now(UTC)
    job = api.lease(lease="20s", worker="me")
    assert {name: job[name] for name in ("job_id", "queue", "task", "payload", "attempt", "attempts_left")} == {
        "job_id": job_id, "queue": "default", "task": "resize", "payload": {"a": 1}, "attempt": 1, "attempts_left": 2,
    }  # fmt: skip
    assert (job["meta"], job["timeout"], job["priority"]) == ({"b": 2}, 60.0, 5)
    until_then = datetime.fromisoformat(job["lease_until"])
    assert timedelta(seconds=15) < until_then - began < timedelta(seconds=25)
    seen = api.job(job_id)
    assert (seen["state"], seen["worker"], seen["attempts"]) == ("running", "me", 1)
    assert datetime.fromisoformat(seen["lease_until"]) >= until_then, "the client is never told more than is true"
    assert api.lease() is None
    done = api.end("ack", job, result=[1, None])
    assert (done.status_code, done.json()) == (200, {"job_id": job_id, "state": "completed"})
    assert api.job(job_id)["result"] == [1, None]
    assert leases(database) == 0
    invariants.check(dsn, [job_id])


def test_an_ack_may_be_said_again(api: Api):
    api.submit(1)
    job = api.lease()
    assert api.end("ack", job, result=1).json() == api.end("ack", job, result=2).json()
    assert api.job(job["job_id"])["result"] == 1
    other = {**job, "lease_token": "abc"}
    problem = check_problem(api.end("ack", other), 409, "lease_lost")
    assert problem["state"] == "completed"
    check_problem(api.end("ack", {**job, "job_id": 999}), 404, "job_not_found")


@pytest.mark.parametrize(("verb", "left"), [("fail", "retrying"), ("release", "scheduled")])
def test_a_failure_or_a_release_may_be_said_again_until_the_next_run_has_ended(
    running: Callable[..., Api], dsn: str, verb: str, left: str
):
    """Also to another server, and while the next worker has the job already."""
    api, other = running(), running()
    job_id = api.submit(1)
    job = api.lease()
    first = api.end(verb, job, retry_in="1h")
    seen = api.job(job_id)
    again = other.end(verb, job, retry_in="2h")
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json() == {"job_id": job_id, "state": left}
    assert api.job(job_id) == seen, "no second effect"
    problem = check_problem(api.end(verb, {**job, "lease_token": "abc"}), 409, "lease_lost")
    assert problem["state"] == left
    api.post(f"/jobs/{job_id}/retry")
    second = api.lease(wait=5)
    assert second["attempt"] == (2 if verb == "fail" else 1)
    assert other.end(verb, job).json() == {"job_id": job_id, "state": "running"}
    assert api.end("ack", second).status_code == 200
    assert check_problem(api.end(verb, job), 409, "lease_lost")["state"] == "completed"
    assert len(api.job(job_id)["errors"]) == (verb == "fail")
    invariants.check(dsn, [job_id])


def test_the_last_failure_may_be_said_again(api: Api):
    job_id = api.submit(1, max_retries=0)
    job = api.lease()
    for _ in range(3):
        assert api.end("fail", job, error="no network").json() == {"job_id": job_id, "state": "dead"}
    assert len(api.job(job_id)["errors"]) == 1


def test_who_says_something_else_the_second_time_is_told_what_became_of_the_job(api: Api):
    ids = [api.submit(n) for n in range(3)]
    jobs = api.lease(max=3)["jobs"]
    for job, verb in zip(jobs, ("ack", "fail", "release"), strict=True):
        api.end(verb, job, **({} if verb == "ack" else {"retry_in": "1h"}))
    for job, other, state in (
        (jobs[0], "fail", "completed"), (jobs[0], "release", "completed"),
        (jobs[1], "ack", "retrying"), (jobs[2], "ack", "scheduled"),
    ):  # fmt: skip
        assert check_problem(api.end(other, job), 409, "lease_lost")["state"] == state
    ends = [
        {"job_id": job["job_id"], "lease_token": job["lease_token"], "outcome": verb}
        for job, verb in zip(jobs, ("ack", "fail", "ack"), strict=True)
    ]
    assert api.post("/jobs:finish", json={"jobs": ends}).json() == {"landed": ids[:2], "lost": ids[2:]}


def test_a_failure_of_a_cancelled_job_may_be_said_again(api: Api):
    job_id = api.submit(1)
    job = api.lease()
    api.post(f"/jobs/{job_id}/cancel")
    for _ in range(2):
        assert api.end("fail", job).json() == {"job_id": job_id, "state": "cancelled"}


def test_a_plain_ack_means_the_lease_that_the_job_has(api: Api, database: psycopg.Connection[Any]):
    job_id = api.submit(1)
    check_problem(api.post(f"/jobs/{job_id}/ack"), 409, "lease_lost")
    api.lease()
    assert api.post(f"/jobs/{job_id}/ack").json() == {"job_id": job_id, "state": "completed"}
    check_problem(api.post(f"/jobs/{job_id}/ack"), 409, "lease_lost")


def test_a_plain_ack_after_the_lease_is_refused(running: Callable[..., Api], database: psycopg.Connection[Any]):
    api = running(settings={"lease_check_interval": timedelta(hours=1)})
    job_id = api.submit(1)
    job = api.lease()
    database.execute("UPDATE pgqueue.leases SET lease_until = now() - interval '1 second'")
    problem = check_problem(api.post(f"/jobs/{job_id}/ack"), 409, "lease_lost")
    assert problem["state"] == "running"
    assert api.end("ack", job).status_code == 200, "nobody else has it: the work is not thrown away"


def test_an_expired_lease_goes_to_the_next_worker_and_the_first_is_told(api: Api, dsn: str):
    job_id = api.submit(1, max_retries=1)
    first = api.lease(lease=1, worker="a")
    second = api.lease(wait=20, worker="b")
    assert (second["job_id"], second["attempt"], second["attempts_left"]) == (job_id, 2, 0)
    problem = check_problem(api.end("ack", first), 409, "lease_lost")
    assert (problem["state"], problem["job_id"]) == ("running", job_id)
    for verb in ("fail", "release"):
        check_problem(api.end(verb, first), 409, "lease_lost")
    assert api.end("ack", second).status_code == 200
    invariants.check(dsn, [job_id])


def test_after_max_retries_the_job_is_dead(api: Api):
    job_id = api.submit(1, max_retries=1)
    api.lease(lease=1)
    api.lease(lease=1, wait=20)
    until(lambda: api.job(job_id)["state"] == "dead", "it is dead")
    assert [error["type"] for error in api.job(job_id)["errors"]] == ["LeaseExpired"] * 2


def test_a_failure_waits_two_seconds_then_four(api: Api):
    job_id = api.submit(1, max_retries=5)
    for expected in (2, 4):
        job = api.lease(wait=20)
        before = datetime.now(UTC)
        failed = api.end("fail", job, error="no network")
        assert failed.json() == {"job_id": job_id, "state": "retrying"}
        seen = api.job(job_id)
        wait = (datetime.fromisoformat(seen["run_at"]) - before).total_seconds()
        assert wait == pytest.approx(expected, rel=0.15, abs=0.3)
        assert (seen["errors"][-1]["type"], seen["errors"][-1]["message"]) == ("Failed", "no network")
        assert api.lease() is None


def test_a_failure_may_say_what_happens_next(api: Api):
    job_id = api.submit(1)
    error = {"type": "Timeout", "message": "slow", "traceback": "line 1"}
    api.end("fail", api.lease(), error=error, retry_in=0)
    job = api.lease(wait=5)
    assert job["attempt"] == 2
    assert api.end("fail", job, error="broken", final=True).json()["state"] == "dead"
    first, second = api.job(job_id)["errors"]
    assert {name: first[name] for name in error} == error
    assert second["message"] == "broken"


def test_a_release_refunds_the_attempt(api: Api):
    api.submit(1)
    assert api.end("release", api.lease()).json()["state"] == "available"
    job = api.lease()
    assert job["attempt"] == 1
    api.end("release", job, retry_in="1h")
    assert api.job(job["job_id"])["state"] in {"scheduled", "retrying"}
    assert api.lease() is None


def test_many_at_once(api: Api, database: psycopg.Connection[Any], dsn: str):
    ids = [one["job_id"] for one in api.post("/jobs:batch", json={"jobs": [{"payload": n} for n in range(5)]}).json()["jobs"]]  # fmt: skip # noqa: E501
    jobs = api.lease(max=10)["jobs"]
    assert [job["job_id"] for job in jobs] == ids
    ends = [
        {"job_id": jobs[0]["job_id"], "lease_token": jobs[0]["lease_token"], "result": 1},
        {"job_id": jobs[1]["job_id"], "lease_token": jobs[1]["lease_token"], "outcome": "fail", "final": True},
        {"job_id": jobs[2]["job_id"], "lease_token": jobs[2]["lease_token"], "outcome": "release"},
        {"job_id": jobs[3]["job_id"], "lease_token": "123"},
        {"job_id": 999, "lease_token": "123"},
    ]
    answer = api.post("/jobs:finish", json={"jobs": ends}).json()
    assert answer == {"landed": ids[:3], "lost": [ids[3], 999]}
    assert [api.job(job_id)["state"] for job_id in ids] == ["completed", "dead", "available", "running", "running"]
    assert leases(database) == 1, "two of its jobs still run"
    rest = [{"job_id": job["job_id"], "lease_token": job["lease_token"]} for job in jobs[3:]]
    assert api.post("/jobs:finish", json={"jobs": rest}).json()["lost"] == []
    assert leases(database) == 0
    invariants.check(dsn, ids)


def test_a_lease_ends_with_the_last_of_its_jobs_and_not_before(api: Api, database: psycopg.Connection[Any], dsn: str):
    """Whatever else is said in the same call: a job without a lease would be lost."""
    ids = [api.submit(n) for n in range(3)]
    jobs = api.lease(max=3, lease=2)["jobs"]
    wrong = {"job_id": ids[1], "lease_token": "7"}
    right = [{"job_id": job["job_id"], "lease_token": job["lease_token"]} for job in (jobs[0], jobs[2])]
    assert api.post("/jobs:finish", json={"jobs": [wrong, *right]}).json() == {"landed": [ids[0], ids[2]], "lost": [ids[1]]}  # fmt: skip # noqa: E501
    again = api.lease(wait=20)
    assert (again["job_id"], again["attempt"]) == (ids[1], 2)
    api.end("ack", again)
    until(lambda: leases(database) == 0, "no lease is left")
    invariants.check(dsn, ids)


def test_a_heartbeat_holds_on(api: Api):
    ids = [api.submit(n) for n in range(3)]
    jobs = api.lease(max=3, lease=30)["jobs"]
    api.post(f"/jobs/{ids[1]}/cancel")
    held = [{"job_id": job["job_id"], "lease_token": job["lease_token"]} for job in jobs]
    held[0]["progress"] = {"value": 0.5, "note": "half"}
    answer = api.post("/heartbeats", json={"leases": [*held, {"job_id": 999, "lease_token": "1"}], "lease": "10m"})
    assert answer.json() == {"extended": ids, "lost": [999], "cancel": [ids[1]], "directive": "run"}
    seen = api.job(ids[0])
    assert seen["progress"] == {"value": 0.5, "note": "half"}
    assert datetime.fromisoformat(seen["lease_until"]) > datetime.now(UTC) + timedelta(minutes=5)
    assert api.post("/heartbeats", json={"leases": []}).json()["extended"] == []


def test_a_heartbeat_keeps_a_short_lease_alive(api: Api):
    api.submit(1)
    job = api.lease(lease=1)
    for _ in range(8):
        time.sleep(0.25)
        held = {"leases": [{"job_id": job["job_id"], "lease_token": job["lease_token"]}], "lease": 1}
        assert api.post("/heartbeats", json=held).json()["lost"] == []
    assert api.end("ack", job).status_code == 200
    assert api.job(job["job_id"])["attempts"] == 1


# -- waiting ---------------------------------------------------------------------------------------------------------


def test_who_waits_gets_the_job_when_it_comes(running: Callable[..., Api]):
    api = running(settings={"poll_interval": timedelta(seconds=60)})
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(api.lease(wait=30, queues=["a", "b"])))
    waiting.start()
    time.sleep(0.3)
    job_id = api.submit(1, queue="b")
    waiting.join()
    assert got[0]["job_id"] == job_id


def test_who_waits_in_vain_is_told_so(api: Api):
    began = time.monotonic()
    assert api.lease(wait=0.3) is None
    assert time.monotonic() - began > 0.25


def test_a_job_for_later_is_waited_for(api: Api):
    job_id = api.submit(1, delay=0.5)
    assert api.lease() is None
    assert api.lease(wait=20)["job_id"] == job_id


def test_many_who_wait_get_one_job_each_under_leases_of_their_own(
    running: Callable[..., Api], database: psycopg.Connection[Any], dsn: str
):
    api = running(settings={"poll_interval": timedelta(seconds=60)})
    with ThreadPoolExecutor(30) as pool:
        waiting = [pool.submit(api.lease, wait=30, worker=f"w{n}") for n in range(30)]
        until(lambda: api.get("/health").status_code == 200, "it answers meanwhile")
        ids = [one["job_id"] for one in api.post("/jobs:batch", json={"jobs": [{}] * 30}).json()["jobs"]]
        jobs = [one.result() for one in waiting]
    assert sorted(job["job_id"] for job in jobs) == ids
    assert len({job["lease_token"] for job in jobs}) == 30
    assert leases(database) == 30
    workers = {row[0] for row in database.execute("SELECT worker FROM pgqueue.jobs").fetchall()}
    assert workers == {f"w{n}" for n in range(30)}
    for job in jobs:
        assert api.end("ack", job).status_code == 200
    assert leases(database) == 0
    invariants.check(dsn, ids)


def test_one_of_many_that_dies_loses_its_own_job_only(api: Api):
    ids = {api.submit(n) for n in range(2)}
    with ThreadPoolExecutor(2) as pool:
        one, two = (future.result() for future in [pool.submit(api.lease, wait=5, lease=1.5) for _ in range(2)])
    assert {one["job_id"], two["job_id"]} == ids
    deadline = time.monotonic() + 20
    while api.job(two["job_id"])["attempts"] == 1 and api.job(two["job_id"])["state"] == "running":
        assert time.monotonic() < deadline
        held = {"leases": [{"job_id": one["job_id"], "lease_token": one["lease_token"]}], "lease": 1.5}
        assert api.post("/heartbeats", json=held).json()["lost"] == []
        time.sleep(0.2)
    assert api.end("ack", one).status_code == 200
    check_problem(api.end("ack", two), 409, "lease_lost")


def test_claims_over_http_have_marks_and_what_commits_behind_them_is_found(dsn: str, monkeypatch: pytest.MonkeyPatch):
    """No claim begins at the start here, once there is a mark: only a look behind the marks can find the job."""
    monkeypatch.setattr(FullScans, "dear", property(lambda _self: True, lambda _self, _value: None), raising=False)
    with (running := Running(dsn)) as api, psycopg.connect(dsn) as late:
        ((job_id,),) = late.execute("SELECT pgqueue.enqueue('http')").fetchall()
        time.sleep(0.4)  # so long a transaction is open that marks pass over its job
        first = api.submit(1)
        assert api.lease(wait=10)["job_id"] == first
        (counter,) = running.app.state.desk._counters.values()
        assert counter._claims.marks.some
        late.commit()
        assert api.lease(wait=30)["job_id"] == job_id


def hang_up_while_waiting(running: Running) -> None:
    """A client that asks for a job and goes away."""
    with socket.create_connection(running.address) as line:
        body = b'{"wait": 30}'
        line.sendall(
            b"POST /jobs/lease HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
            + str(len(body)).encode() + b"\r\n\r\n" + body
        )  # fmt: skip
        until(lambda: running.app.state.desk.waiting, "it waits")


def test_a_client_that_went_away_gets_no_job(dsn: str):
    with (running := Running(dsn)) as api:
        hang_up_while_waiting(running)
        until(lambda: not running.app.state.desk.waiting, "it is noticed")
        api.submit(1)
        job = api.lease(wait=5)
        assert job["attempt"] == 1


def test_what_was_claimed_for_a_client_that_went_away_is_given_back_and_refunded(
    dsn: str, monkeypatch: pytest.MonkeyPatch
):
    """It hangs up between the claim and the answer."""
    with (running := Running(dsn)) as api:
        desk = running.app.state.desk
        split, claim = threading.Event(), threading.Event()
        from pgqueue.worker.claims import Claims

        real = Claims.claim

        async def slow(self: Claims, limit: int, take: Any, **options: Any) -> int:
            found = await real(self, limit, take, **options)
            if found:
                claim.set()
                import asyncio

                await asyncio.to_thread(split.wait, 20)
            return found

        monkeypatch.setattr(Claims, "claim", slow)
        with socket.create_connection(running.address) as line:
            body = b'{"wait": 30}'
            line.sendall(
                b"POST /jobs/lease HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                + str(len(body)).encode() + b"\r\n\r\n" + body
            )  # fmt: skip
            until(lambda: desk.waiting, "it waits")
            job_id = api.submit(1)
            assert claim.wait(20)
            assert api.job(job_id)["state"] == "running"
        until(lambda: not desk.waiting, "it is noticed")
        split.set()
        until(lambda: api.job(job_id)["state"] == "available", "it is given back")
        monkeypatch.undo()
        assert api.lease(wait=5)["attempt"] == 1


def test_a_server_that_stops_sends_waiting_clients_elsewhere(dsn: str):
    with (running := Running(dsn)) as api, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.post, "/jobs/lease", json={"wait": 30})
        until(lambda: running.app.state.desk.waiting, "it waits")
        running.app.state.desk.drain()
        check_problem(waiting.result(), 503, "draining")
        check_problem(api.post("/jobs/lease", json={}), 503, "draining")
        assert api.get("/readyz").status_code == 503
        assert api.get("/livez").status_code == 200
        assert api.post("/jobs", json={}).status_code == 201


# -- the semantics of queues hold ------------------------------------------------------------------------------------


def test_jobs_of_one_key_go_out_one_at_a_time_and_in_order(api: Api, dsn: str):
    ids = [api.submit(n, group_key="k") for n in range(5)]
    for job_id in ids:
        job = api.lease(wait=20)
        assert job["job_id"] == job_id
        assert api.lease() is None
        api.end("ack", job)
    invariants.check(dsn, ids)


def test_a_limit_holds_for_many_who_wait(api: Api):
    api.patch("/queues/default", json={"max_running": 3})
    api.post("/jobs:batch", json={"jobs": [{}] * 20})
    running: Counter[str] = Counter()
    most, done = 0, []
    lock = threading.Lock()

    def work(_n: int) -> None:
        nonlocal most
        while len(done) < 20:
            job = api.lease(wait=0.5)
            if job is None:
                continue
            with lock:
                running["now"] += 1
                most = max(most, running["now"])
            time.sleep(0.02)
            with lock:
                running["now"] -= 1
            assert api.end("ack", job).status_code == 200
            done.append(job["job_id"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(set(done)) == 20
    assert most <= 3


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"max": 0}, "invalid_request"), ({"max": 5_000}, "invalid_request"), ({"queues": []}, "invalid_request"),
        ({"queues": ["a\0b"]}, "invalid_job"), ({"lease": 0.5}, "invalid_request"), ({"lease": "1y"}, "invalid_job"),
        ({"wait": "1h"}, "invalid_job"), ({"wait": -1}, "invalid_job"), ({"worker": "a\0"}, "invalid_job"),
    ],
)  # fmt: skip
def test_a_lease_that_has_no_meaning_is_refused(api: Api, wanted: dict[str, Any], code: str):
    check_problem(api.post("/jobs/lease", json=wanted), 422, code)
