"""Enqueue over HTTP, look at jobs, take them back."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pgqueue import statements
from server.conftest import check_problem

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from server.conftest import Api


def test_the_plainest_call(api: Api):
    answer = api.post("/jobs", json={"payload": "process this data", "max_retries": 3})
    assert answer.status_code == 201
    job_id = answer.json()["job_id"]
    assert answer.json() == {"job_id": job_id, "state": "available", "created": True}
    job = api.job(job_id)
    assert job["payload"] == "process this data"
    assert (job["state"], job["attempts"], job["max_retries"], job["queue"]) == ("available", 0, 3, "default")
    assert datetime.fromisoformat(job["created_at"]) - datetime.now(UTC) < timedelta(minutes=5)


@pytest.mark.parametrize(
    "payload", [None, True, 0, -1.5, "", "ü✓ \N{GRINNING FACE}", [], [1, [2]], {}, {"a": {"b": [None]}}, 2**53]
)
def test_a_payload_is_any_json(api: Api, payload: Any):
    assert api.job(api.submit(payload))["payload"] == payload
    assert api.lease()["payload"] == payload


@pytest.mark.parametrize("levels", [190, 260, 900, 3000])
def test_a_payload_of_any_depth_is_shown(api: Api, database: psycopg.Connection[Any], levels: int):
    """pydantic writes 255 levels, orjson reads 1,024, Python's recursion ends at 1,000: below that it is text."""
    deep = "[" * levels + "1" + "]" * levels
    (job_id,) = database.execute("SELECT pgqueue.enqueue('t', %s::text::jsonb)", [deep]).fetchone()  # type: ignore[misc]
    answer = api.get(f"/jobs/{job_id}")
    assert answer.status_code == 200
    assert "[[" in answer.text
    assert api.get("/jobs").json()["jobs"][0]["job_id"] == job_id


def test_without_a_body_field_the_defaults_are_those_of_the_command_line(api: Api):
    job = api.job(api.post("/jobs", json={}).json()["job_id"])
    assert (job["payload"], job["task"], job["priority"], job["max_retries"], job["max_attempts"]) == (
        {}, "echo", 5, 9, 10,
    )  # fmt: skip


def test_every_option_arrives(api: Api):
    upstream = api.submit(1)
    options = {
        "task": "mail", "queue": "q", "priority": "high", "delay": "1h", "max_attempts": 4, "timeout": 90,
        "unique_key": "k", "unique_for": "2d", "group_key": "g", "meta": {"a": 1}, "depends_on": [upstream],
        "on_dead": "hold",
    }  # fmt: skip
    answer = api.post("/jobs", json={"payload": 1, **options})
    assert answer.json()["state"] == "blocked"
    job = api.job(answer.json()["job_id"])
    assert {name: job[name] for name in ("task", "queue", "priority", "max_attempts", "timeout")} == {
        "task": "mail", "queue": "q", "priority": 2, "max_attempts": 4, "timeout": "1m30s",
    }  # fmt: skip
    assert (job["unique_key"], job["group_key"], job["depends_on"], job["pending"]) == ("k", "g", [upstream], 1)
    assert job["meta"] == {"a": 1}


def test_a_job_for_later_says_so(api: Api):
    assert api.post("/jobs", json={"delay": 60}).json()["state"] == "scheduled"
    assert api.post("/jobs", json={"run_at": "2035-01-01T00:00:00Z"}).json()["state"] == "scheduled"
    assert api.post("/jobs", json={"run_at": "2005-01-01T00:00:00Z"}).json()["state"] == "available"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ('{"payload": ', 400, "invalid_json"),
        ("\xff\xfe", 400, "invalid_json"),
        ("[]", 422, "invalid_request"),
        ('{"payload": 1, "prio": 1}', 422, "invalid_request"),
        ('{"queue": ""}', 422, "invalid_request"),
        ('{"queue": "a\\u0000b"}', 422, "invalid_job"),
        ('{"priority": 11}', 422, "invalid_job"),
        ('{"payload": NaN}', 422, "invalid_job"),
        ('{"payload": "\\u0000"}', 422, "invalid_job"),
        ('{"payload": "\\ud800"}', 400, "invalid_json"),
        ('{"delay": "soon"}', 422, "invalid_job"),
        ('{"delay": 1, "run_at": "2035-01-01T00:00:00Z"}', 422, "invalid_job"),
        ('{"run_at": "2035-01-01T00:00:00"}', 422, "invalid_job"),
        ('{"max_retries": 1, "max_attempts": 1}', 422, "invalid_job"),
        ('{"max_retries": -1}', 422, "invalid_request"),
        ('{"depends_on": [999999]}', 422, "invalid_job"),
        ('{"depends_on": [99999999999999999999]}', 422, "invalid_request"),
        ('{"on_conflict": "maybe"}', 422, "invalid_request"),
        ('{"unique_for": "1d"}', 422, "invalid_job"),
        (json.dumps({"payload": "x" * 2**20}), 413, "payload_too_large"),
        (json.dumps({"payload": "x" * 2**24}), 413, "body_too_large"),
        ("[" * 100_000 + "]" * 100_000, 400, None),
    ],
)
def test_bad_input_is_refused_with_its_reason(
    api: Api, database: psycopg.Connection[Any], body: str, status: int, code: str | None
):
    answer = api.post("/jobs", content=body.encode("latin-1"), headers={"Content-Type": "application/json"})
    if code is None:
        assert answer.status_code in {400, 422}
    else:
        check_problem(answer, status, code)
    assert database.execute("SELECT count(*) FROM pgqueue.jobs").fetchone() == (0,)


def test_a_body_without_a_length_is_counted(api: Api):
    answer = api.post("/jobs", content=(b" " * 2**20 for _ in range(20)), headers={"Content-Type": "application/json"})
    check_problem(answer, 413, "body_too_large")


def test_what_is_no_job_is_not_found(api: Api):
    check_problem(api.get("/jobs/999"), 404, "job_not_found")
    check_problem(api.post("/jobs/999/cancel"), 404, "job_not_found")
    check_problem(api.get("/jobs/x"), 422, "invalid_request")
    check_problem(api.get(f"/jobs/{2**63}"), 422, "invalid_request")
    check_problem(api.get("/nothing"), 404, "not_found")
    check_problem(api.delete("/jobs"), 405, "method_not_allowed")


# -- keys ------------------------------------------------------------------------------------------------------------


def test_a_unique_job_is_answered_with_the_one_that_is_there(api: Api):
    first = api.submit(1, unique_key="k")
    answer = api.post("/jobs", json={"payload": 2, "unique_key": "k"})
    assert (answer.status_code, answer.json()) == (200, {"job_id": first, "state": "available", "created": False})
    refused = api.post("/jobs", json={"payload": 2, "unique_key": "k", "on_conflict": "raise"})
    assert check_problem(refused, 409, "job_exists")["job_id"] == first


def test_the_same_call_twice_is_one_job(api: Api):
    def call(body: Any, key: str = "abc") -> Any:
        return api.post("/jobs", json=body, headers={"Idempotency-Key": key})

    first = call({"payload": {"a": 1, "b": 2}})
    again = call({"payload": {"b": 2, "a": 1}})
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == {"job_id": first.json()["job_id"], "state": "available", "created": False}
    assert api.end("ack", api.lease()).status_code == 200
    assert call({"payload": {"a": 1, "b": 2}}).json()["state"] == "completed"
    other = check_problem(call({"payload": 3}), 409, "idempotency_conflict")
    assert other["job_id"] == first.json()["job_id"]
    assert call({"payload": 3}, "def").status_code == 201
    assert call({"payload": 3, "queue": "q"}).status_code == 201
    check_problem(call({"unique_key": "k"}), 422, "invalid_job")
    check_problem(call({}, "x" * 256), 422, "invalid_request")


def test_the_same_call_from_many_at_once_is_one_job(api: Api, database: psycopg.Connection[Any]):
    answers = []

    def call() -> None:
        answers.append(api.post("/jobs", json={"payload": 1}, headers={"Idempotency-Key": "k"}))

    threads = [threading.Thread(target=call) for _ in range(20)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert database.execute("SELECT count(*) FROM pgqueue.jobs").fetchone() == (1,)


# -- many ------------------------------------------------------------------------------------------------------------


def test_a_batch_is_all_or_none(api: Api, database: psycopg.Connection[Any]):
    answer = api.post("/jobs:batch", json={"jobs": [{"payload": n, "delay": n} for n in range(100)]})
    assert answer.status_code == 201
    jobs = answer.json()["jobs"]
    assert [job["state"] for job in jobs] == ["available"] + ["scheduled"] * 99
    assert api.job(jobs[7]["job_id"])["payload"] == 7
    refused = api.post("/jobs:batch", json={"jobs": [{"payload": 1}, {"delay": "soon"}]})
    problem = check_problem(refused, 422, "invalid_job")
    assert (problem["index"], problem["detail"][:6]) == (1, "job 1:")
    assert database.execute("SELECT count(*) FROM pgqueue.jobs").fetchone() == (100,)


def test_pages_show_each_job_once(api: Api):
    ids = [job["job_id"] for job in api.post("/jobs:batch", json={"jobs": [{}] * 25}).json()["jobs"]]
    seen: list[int] = []
    cursor: dict[str, int] = {}
    while True:
        page = api.get("/jobs", params={"limit": 10, **cursor}).json()
        seen += [job["job_id"] for job in page["jobs"]]
        if page["cursor"] is None:
            break
        cursor = {"cursor": page["cursor"]}
        api.submit(1)  # in front of the first page
    assert seen == ids[::-1]
    assert api.get("/jobs", params={"queue": "other"}).json() == {"jobs": [], "cursor": None}
    assert len(api.get("/jobs", params={"state": "available", "task": "echo"}).json()["jobs"]) == 27
    check_problem(api.get("/jobs", params={"state": "asleep"}), 422, "invalid_request")


def test_jobs_by_tag_and_by_when_they_were_created(api: Api, database: psycopg.Connection[Any]):
    old, new = (api.submit(n, meta={"tags": ["spring", f"n{n}"]}) for n in range(2))
    api.submit(2)
    database.execute("UPDATE pgqueue.jobs SET created_at = '2026-01-31T09:00:00Z' WHERE id = %s", [old])

    def found(**wanted: str) -> list[int]:
        return [job["job_id"] for job in api.get("/jobs", params=wanted).json()["jobs"]]

    assert found(tag="spring") == [new, old]
    assert found(tag="n0") == [old]
    assert found(tag="spring", since="1h") == [new]
    assert found(tag="spring", since="2026-01-31T10:00:00+01:00") == [new, old]
    assert found(tag="spring", since="2026-01-31T09:00:00.000001Z") == [new]
    for wrong in ("yesterday", "2026-01-31T09:00:00", "-1h", "nan"):
        check_problem(api.get("/jobs", params={"since": wrong}), 422, "invalid_job")
    check_problem(api.get("/jobs", params={"tag": ""}), 422, "invalid_request")


def test_a_page_without_jobs_may_have_a_cursor(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statements.list_jobs, "__kwdefaults__", {"most": 10})
    wanted = api.submit(1, queue="rare")
    api.post("/jobs:batch", json={"jobs": [{}] * 12})
    first = api.get("/jobs", params={"queue": "rare"}).json()
    assert first["jobs"] == []
    second = api.get("/jobs", params={"queue": "rare", "cursor": first["cursor"]}).json()
    assert ([job["job_id"] for job in second["jobs"]], second["cursor"]) == ([wanted], None)


# -- verbs -----------------------------------------------------------------------------------------------------------


def test_cancel_and_retry(api: Api):
    waiting = api.submit(1)
    assert api.post(f"/jobs/{waiting}/cancel").json() == {"job_id": waiting, "state": "cancelled"}
    assert api.post(f"/jobs/{waiting}/retry").json() == {"job_id": waiting, "state": "available"}
    api.lease()
    asked = api.post(f"/jobs/{waiting}/cancel")
    assert (asked.status_code, asked.json()["state"]) == (202, "running")
    problem = check_problem(api.post(f"/jobs/{waiting}/retry"), 409, "job_state")
    assert problem["state"] == "running"


def test_bulk(api: Api):
    for _ in range(3):
        api.submit(1, max_retries=0)
        api.end("fail", api.lease())

    def bulk(**body: Any) -> tuple[int, bool]:
        would = api.post("/jobs:bulk", json={**body, "dry_run": True}).json()
        done = api.post("/jobs:bulk", json=body).json()
        assert would == done, "the dry run has changed nothing, and said what would be done"
        return done["count"], done["more"]

    assert bulk(action="redrive", limit=2) == (2, True)
    assert bulk(action="purge", queue="default") == (2, False)
    assert bulk(action="redrive", task="other") == (0, False)
    assert bulk(action="purge_dead") == (1, False)
    check_problem(api.post("/jobs:bulk", json={"action": "purge"}), 422, "invalid_job")


def test_waiting_for_the_end_of_a_job(api: Api):
    job_id = api.submit(1)
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(api.get(f"/jobs/{job_id}?wait=20s").json()))
    waiting.start()
    assert api.end("ack", api.lease(), result={"n": 1}).status_code == 200
    waiting.join()
    assert (answers[0]["state"], answers[0]["result"]) == ("completed", {"n": 1})
    other = api.submit(2)
    assert api.get(f"/jobs/{other}?wait=0.1").json()["state"] == "available"
    check_problem(api.get(f"/jobs/{other}?wait=1h"), 422, "invalid_job")


def test_reads_do_not_show_what_is_redacted(running: Callable[..., Api]):
    api = running(redact=["Password", "token"])
    payload = {"user": "ada", "password": "s3cret", "more": [{"TOKEN": {"deep": 1}, "n": 1}]}
    job_id = api.submit(payload, meta={"token": "s3cret"})
    leased = api.lease()
    assert leased["payload"] == payload, "a worker gets it all"
    api.end("ack", leased, result={"password": "s3cret"})
    job = api.job(job_id)
    assert job["payload"] == {"user": "ada", "password": "[redacted]", "more": [{"TOKEN": "[redacted]", "n": 1}]}
    assert "s3cret" not in api.get("/jobs").text


# -- queues ----------------------------------------------------------------------------------------------------------


def test_queues(api: Api):
    api.submit(1, queue="a")
    api.submit(1, queue="b")
    queues = {one["queue"]: one for one in api.get("/queues").json()["queues"]}
    assert {name: one["available"] for name, one in queues.items()} == {"a": 1, "b": 1}
    assert api.post("/queues/a/pause").json() == {"queue": "a", "changed": True}
    assert api.post("/queues/a/pause").json() == {"queue": "a", "changed": False}
    assert api.lease(queues=["a"]) is None
    assert api.post("/queues/a/resume").json()["changed"] is True
    assert api.lease(queues=["a"])["queue"] == "a"
    assert api.patch("/queues/b", json={"max_running": 1, "rate": 2.5}).json()["max_running"] == 1
    assert api.patch("/queues/b", json={"rate": None}).json()["max_running"] == 1
    check_problem(api.patch("/queues/b", json={"max_running": 0}), 422, "invalid_request")


# -- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_with_an_order_and_its_progress(api: Api, database: psycopg.Connection[Any]):
    answer = api.post("/batches", json={"name": "report", "jobs": [{"payload": 0}, {"payload": 1}, {"payload": 2, "after": [0, 1]}]})  # fmt: skip # noqa: E501
    assert answer.status_code == 201
    batch, ids = answer.json()["batch_id"], answer.json()["job_ids"]
    assert [api.job(job_id)["state"] for job_id in ids] == ["available", "available", "blocked"]
    for job in api.lease(max=5)["jobs"]:
        api.end("ack", job, result=job["payload"])
    assert api.job(ids[2])["state"] == "available"
    seen = api.get(f"/batches/{batch}").json()
    assert (seen["name"], seen["total"], seen["completed"], seen["pending"], seen["finished"]) == (
        "report", 3, 2, 1, False,
    )  # fmt: skip
    assert [job["job_id"] for job in api.get(f"/jobs/{ids[2]}/tree").json()["jobs"]] == ids
    assert api.post(f"/batches/{batch}/cancel").json() == {"count": 1}
    check_problem(api.get("/batches/999"), 404, "batch_not_found")
    check_problem(api.post("/batches", json={"jobs": [{"after": [0]}]}), 422, "invalid_job")
    assert database.execute("SELECT count(*) FROM pgqueue.batches").fetchone() == (1,)


# -- schedules -------------------------------------------------------------------------------------------------------


def test_schedules(api: Api):
    body = {"expression": "*/5 * * * *", "task": "t", "payload": {"a": 1}, "tz": "Europe/Berlin", "queue": "q"}
    answer = api.put("/schedules/five", json=body)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["payload"], len(answer.json()["upcoming"])) == ({"a": 1}, 5)
    assert api.put("/schedules/five", json={**body, "payload": 2}).status_code == 200
    assert api.get("/schedules/five").json()["payload"] == 2
    assert api.post("/schedules/five/pause").json() == {"name": "five", "changed": True}
    assert api.get("/schedules").json()["schedules"][0]["paused"] is True
    assert api.post("/schedules/five/resume").json()["changed"] is True
    assert api.delete("/schedules/five").status_code == 204
    for call in (api.get, api.delete):
        check_problem(call("/schedules/five"), 404, "schedule_not_found")
    check_problem(api.put("/schedules/x", json={**body, "expression": "often"}), 422, "invalid_job")
    check_problem(api.put("/schedules/x", json={**body, "tz": "Europe/Atlantis"}), 422, "invalid_job")


def test_a_server_fires_schedules(api: Api):
    assert api.put("/schedules/fast", json={"expression": "every 1s", "task": "t", "queue": "q"}).status_code == 201
    job = api.lease(queues=["q"], wait=20)
    assert (job["task"], job["meta"]["schedule"]) == ("t", "fast")
