"""Health: what load balancers and Kubernetes ask."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from server.conftest import Running, check_problem, until

if TYPE_CHECKING:
    import pytest

    from server.conftest import Api


def test_a_healthy_server_says_so(api: Api):
    until(lambda: api.get("/health").json()["checks"]["listener"] == "ok", "it listens")
    for path in ("/health", "/readyz"):
        answer = api.get(path)
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")
        assert answer.json()["checks"] == {"database": "ok", "server": "ok", "listener": "ok"}
    assert api.get("/livez").json() == {"status": "ok", "checks": {"process": "ok"}}


def test_metrics_are_what_the_database_knows(api: Api):
    api.submit(1, queue="q")
    answer = api.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'pgqueue_jobs{queue="q",state="available"} 1.0' in answer.text
    assert "pgqueue_enqueued_total 1.0" in answer.text
    opened = api.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert opened.headers["content-type"].startswith("application/openmetrics-text")
    assert opened.text.endswith("# EOF\n")


def figures(api: Api, name: str) -> dict[str, float]:
    """The samples of one name, by what is between the braces."""
    found = re.findall(rf"^{name}(?:{{(.*)}})? ([0-9.e+-]+)$", api.get("/metrics").text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def test_what_clients_finish_is_counted_by_queue_task_and_outcome(api: Api):
    for task in ("resize", "resize", "mail", "mail", "mail"):
        api.submit(1, queue="q", task=task, max_retries=1)
    one, two, *mails = api.lease(queues=["q"], max=5)["jobs"]
    api.end("ack", one)
    api.end("ack", one)
    ends = [
        {"job_id": two["job_id"], "lease_token": two["lease_token"]},
        {"job_id": mails[0]["job_id"], "lease_token": mails[0]["lease_token"], "outcome": "fail", "retry_in": 0},
        {"job_id": mails[1]["job_id"], "lease_token": mails[1]["lease_token"], "outcome": "fail", "final": True},
        {"job_id": mails[2]["job_id"], "lease_token": "1"},
    ]
    assert api.post("/jobs:finish", json={"jobs": ends}).json()["lost"] == [mails[2]["job_id"]]
    api.end("release", mails[2], retry_in="1h")
    assert figures(api, "pgqueue_finished_total") == {
        'outcome="completed",queue="q",task="resize"': 2, 'outcome="retry",queue="q",task="mail"': 1,
        'outcome="dead",queue="q",task="mail"': 1, 'outcome="release",queue="q",task="mail"': 1,
    }  # fmt: skip
    assert figures(api, "pgqueue_run_seconds_count") == {'queue="q",task="resize"': 2, 'queue="q",task="mail"': 2}
    assert 0 < figures(api, "pgqueue_run_seconds_sum")['queue="q",task="resize"'] < 60
    assert figures(api, "pgqueue_wait_seconds_count") == {'queue="q"': 4}
    assert figures(api, "pgqueue_lease_lost_total") == {"": 1}
    assert figures(api, "pgqueue_claim_batch_size_sum") == {"": 5}
    assert figures(api, "pgqueue_finish_flush_seconds_count") == {"": 3}
    assert figures(api, "pgqueue_enqueued_total") == {"": 5}


def test_what_a_server_sweeps_is_counted(api: Api):
    api.submit(1)
    api.lease(lease=1)
    until(lambda: figures(api, "pgqueue_swept_total")[""] == 1, "it is swept")


def test_clients_can_not_make_series_without_end(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pgqueue.http.tally._MOST_PAIRS", 2)
    for task in "abcd":
        api.submit(1, task=task)
        api.end("ack", api.lease())
    counted = figures(api, "pgqueue_finished_total")
    assert {labels.split('task="')[1][:-1]: count for labels, count in counted.items()} == {"a": 1, "b": 1, "other": 2}


def test_without_its_database_it_lives_and_is_not_ready(private_server: Any):
    database = private_server(migrated=True)
    with Running(database.dsn) as api:
        assert api.get("/readyz").status_code == 200
        database.stop("immediate")
        answer = api.get("/readyz")
        assert (answer.status_code, answer.json()["checks"]["database"]) == (503, "can't be reached")
        assert api.get("/livez").status_code == 200
        check_problem(api.post("/jobs/lease", json={}), 503, "database_unreachable")
        database.start()
        until(lambda: api.get("/readyz").status_code == 200, "it is ready again")
        until(lambda: api.post("/jobs", json={}).status_code == 201, "it takes jobs again")
        until(lambda: api.post("/jobs/lease", json={"wait": 1}).status_code == 200, "it hands them out again")


def test_without_a_schema_it_is_not_ready(empty_dsn: str):
    with Running(empty_dsn) as api:
        answer = api.get("/readyz")
        assert answer.status_code == 503
        assert "pgq migrate" in answer.json()["checks"]["database"]
        check_problem(api.post("/jobs", json={}), 503, "schema")


async def test_mounted_into_another_application_as_the_page_says(dsn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    page = (Path(__file__).parent.parent.parent / "docs" / "http.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    site = names["site"]
    async with (
        site.router.lifespan_context(site),
        httpx.AsyncClient(transport=httpx.ASGITransport(site), base_url="http://test/queue") as client,
    ):
        answer = await client.post("/jobs", json={"payload": {"password": "x"}})
        assert answer.status_code == 201
        job = (await client.post("/jobs/lease", json={"wait": 5})).json()
        assert (await client.get(f"/jobs/{job['job_id']}")).json()["payload"] == {"password": "[redacted]"}
        ended = await client.post(f"/jobs/{job['job_id']}/ack", json={"lease_token": job["lease_token"]})
        assert ended.json()["state"] == "completed"
        assert (await client.get("/readyz")).status_code == 200
    async with httpx.AsyncClient(transport=httpx.ASGITransport(site), base_url="http://test/queue") as client:
        assert (await client.get("/readyz")).status_code == 503
    await names["queue"].aclose()
