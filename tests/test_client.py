"""The two clients: every verb of both, COPY, the caller's connection, and what happens when the server goes away."""

from __future__ import annotations

import inspect
import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import invariants
import psycopg
import pytest
from peers import Peer

from pgqueue import AsyncClient, Client, JobSpec, statements
from pgqueue.connection import Database, connection_string
from pgqueue.errors import (
    DatabaseError,
    DatabaseUnreachableError,
    InvalidJobError,
    InvalidPayloadError,
    JobNotFoundError,
    JobStateError,
    SchemaError,
    TokenExistsError,
    TokenNotFoundError,
)
from pgqueue.statements import Statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

NOW = datetime(2030, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
NOWHERE = "host=127.0.0.1 port=1 connect_timeout=1"
SPECS = [
    JobSpec.make("plain"),
    JobSpec.make(
        "Ünï✓ \N{GRINNING FACE}", {"text": 'quote " back \\ tab \t ✓ \N{GRINNING FACE}', "n": [1.5, None]}, queue="ünï"
    ),
    JobSpec.make("t", None, priority=0, max_attempts=32_767),
    JobSpec.make("t", [], priority=9, max_attempts=1),
    JobSpec.make("t", run_at=NOW),
    JobSpec.make("t", run_at=datetime(1970, 1, 1, tzinfo=UTC)),
    JobSpec.make("t", delay="90s"),
    JobSpec.make("t", delay=0),
    JobSpec.make("t", delay=timedelta(days=36500)),
    JobSpec.make("t", timeout=timedelta(microseconds=1)),
    JobSpec.make("t", timeout="36500 days"),
    JobSpec.make("t", timeout=timedelta(days=3, seconds=5, microseconds=7)),
    JobSpec.make("t", meta={"trace": "ü", "tags": [1, 2]}),
    JobSpec.make("x" * 128, "y" * 100_000, queue="q" * 128),
]


class AsSync:
    """An AsyncClient whose verbs can be called like a Client's, so that one test serves both."""

    def __init__(self, client: AsyncClient, run: Callable[[Any], Any]) -> None:
        self._client = client
        self._wait = run

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._wait(getattr(self._client, name)(*args, **kwargs))


@pytest.fixture
def database(dsn: str) -> Database:
    return Database(lambda: dsn)


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, database: Database) -> Iterator[Any]:
    """Both clients in turn, called the same way."""
    if request.param == "sync":
        yield Client(database)
        database.close()
        return
    import asyncio

    with asyncio.Runner() as runner:
        yield AsSync(AsyncClient(database), runner.run)
        runner.run(database.aclose())


@pytest.fixture
def peer(dsn: str) -> Iterator[Peer]:
    with Peer(dsn) as peer:
        yield peer


# -- the two are one -------------------------------------------------------------------------------------------------


def test_both_clients_have_the_same_verbs_with_the_same_arguments():
    def verbs(cls: type) -> dict[str, str]:
        return {
            name: str(inspect.signature(member))
            for name, member in vars(cls).items()
            if callable(member) and (not name.startswith("_") or name == "__init__")
        }

    assert verbs(Client) == verbs(AsyncClient)
    assert all(
        inspect.iscoroutinefunction(member)
        for name, member in vars(AsyncClient).items()
        if callable(member) and not name.startswith("__")
    )


def test_every_verb_takes_the_callers_connection():
    for name, member in vars(Client).items():
        if callable(member) and not name.startswith("_"):
            assert "connection" in inspect.signature(member).parameters, name


# -- every verb ------------------------------------------------------------------------------------------------------


def test_enqueue_and_get(client: Any):
    job_id = client.enqueue(JobSpec.make("t", {"a": 1}, unique_key="k", meta={"m": 1}))
    record = client.get(job_id)
    assert (record.id, record.task, record.payload, record.meta) == (job_id, "t", {"a": 1}, {"m": 1})
    assert record.run_at.utcoffset() == timedelta(0)
    assert client.enqueue(JobSpec.make("t", unique_key="k")) == job_id


def test_what_does_not_exist_is_not_found(client: Any):
    for verb in (client.get, client.cancel, client.retry):
        with pytest.raises(JobNotFoundError, match="no job 4711: never committed, or pruned") as caught:
            verb(4711)
        assert caught.value.job_id == 4711


def test_cancel_and_retry_say_which_state_forbids_them(client: Any, peer: Peer):
    job_id = client.enqueue(JobSpec.make("t", delay=60))
    assert client.retry(job_id) == "available"
    claim = peer.claim()
    assert client.cancel(job_id) == "running"
    with pytest.raises(JobStateError, match="is running: it can't be retried"):
        client.retry(job_id)
    peer.end(claim)
    for verb, done in ((client.cancel, "cancelled"), (client.retry, "retried")):
        with pytest.raises(JobStateError, match=f"is completed: it can't be {done}") as caught:
            verb(job_id)
        assert (caught.value.job_id, caught.value.state) == (job_id, "completed")
    waiting = client.enqueue(JobSpec.make("t"))
    assert client.cancel(waiting) == client.cancel(waiting) == "cancelled"
    assert client.retry(waiting) == "available"
    peer.end(peer.claim(), "dead")
    with pytest.raises(JobStateError, match="is dead: it can't be cancelled"):
        client.cancel(waiting)


def test_jobs_come_newest_first_a_page_at_a_time(client: Any, peer: Peer):
    ids = [client.enqueue(JobSpec.make(f"t{n % 2}", queue=f"q{n % 3}", delay=60 * (n % 2))) for n in range(6)]
    peer.end(peer.claim(1, queues=["q0"]))
    assert [record.id for record in client.jobs()] == ids[::-1]
    assert [record.id for record in client.jobs(limit=2)] == [ids[5], ids[4]]
    assert [record.id for record in client.jobs(limit=2, before=ids[4])] == [ids[3], ids[2]]
    assert [record.id for record in client.jobs(queue="q1")] == [ids[4], ids[1]]
    assert [record.id for record in client.jobs(task="t1", state="scheduled")] == [ids[5], ids[3], ids[1]]
    assert [record.id for record in client.jobs(state="completed")] == [ids[0]]
    assert client.jobs(before=ids[0]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state": "lost"}, "state must be one of available"),
        ({"limit": 0}, "1 to 1000"),
        ({"limit": 1001}, "1 to 1000"),
        ({"tag": ""}, "tag must have 1 to 128"),
        ({"tag": "a\0"}, "tag must not contain a NUL"),
        ({"queue": ""}, "queue must have 1 to 128"),
        ({"since": "yesterday"}, "since must be a time with its zone"),
        ({"since": "2026-01-31T09:00"}, "since must be a time with its zone"),
        ({"since": "-1h"}, "since must be a time with its zone"),
        ({"since": datetime(2026, 1, 31)}, "since must carry a time zone"),  # noqa: DTZ001
        ({"since": "1600-01-01T00:00Z"}, "since must be from 1970"),
        ({"since": True}, "since must be"),
    ],
)
def test_a_page_that_has_no_meaning_is_refused(client: Any, arguments: dict[str, Any], message: str):
    for verb in (client.jobs, client.jobs_page):
        with pytest.raises(InvalidJobError, match=message):
            verb(**arguments)


def test_jobs_with_a_tag_are_those_that_have_it_in_the_list_tags_of_their_meta(client: Any):
    metas: list[Any] = [
        {"tags": ["a", "b"]}, {"tags": ["b"]}, {"tags": []}, {"tags": "a b"}, {"tags": {"b": 1}}, {"tags": [["b"]]},
        {"tag": "b"}, None,
    ]  # fmt: skip
    ids = [client.enqueue(JobSpec.make("t", meta=meta)) for meta in metas]
    assert [record.id for record in client.jobs(tag="b")] == [ids[1], ids[0]]
    assert [record.id for record in client.jobs(tag="a")] == [ids[0]]
    assert client.jobs(tag="c") == client.jobs(tag="a", queue="other") == []


def test_jobs_since_a_time_or_for_a_while(client: Any, peer: Peer):
    ids = [client.enqueue(JobSpec.make("t")) for _ in range(3)]
    peer.end(peer.claim(1))
    peer.sql("UPDATE pgqueue.history SET created_at = now() - interval '2 hours' WHERE id = %s", ids[0])
    peer.sql("UPDATE pgqueue.jobs SET created_at = now() - interval '50 minutes' WHERE id = %s", ids[1])
    now: datetime = peer.value("SELECT now()")
    for since, expected in (
        ("1h", ids[:0:-1]), (timedelta(minutes=40), ids[:1:-1]), (10_000, ids[::-1]), ("0s", []),
        (now - timedelta(hours=1), ids[:0:-1]), ((now - timedelta(hours=1)).isoformat(), ids[:0:-1]),
        ("2000-01-01T00:00Z", ids[::-1]), (now + timedelta(days=1), []),
    ):  # fmt: skip
        assert [record.id for record in client.jobs(since=since)] == expected, since
    assert [record.id for record in client.jobs(since="1h", state="available", limit=1)] == ids[:1:-1]


@pytest.fixture
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement looks at four jobs."""
    monkeypatch.setattr(statements.list_jobs, "__kwdefaults__", {"most": 4})


@pytest.mark.usefixtures("short_looks")
def test_a_page_looks_at_a_bounded_number_of_jobs_and_a_list_at_all(client: Any):
    ids = [client.enqueue(JobSpec.make("t", queue="rare" if n in {0, 5} else "q")) for n in range(10)]
    seen, before, pages = [], None, 0
    while True:
        page = client.jobs_page(queue="rare", before=before)
        seen += [record.id for record in page.jobs]
        pages += 1
        if page.before is None:
            break
        before = page.before
    assert (seen, pages) == ([ids[5], ids[0]], 3)
    assert [record.id for record in client.jobs(queue="rare")] == [ids[5], ids[0]]
    assert [record.id for record in client.jobs(queue="rare", limit=1)] == [ids[5]]
    assert [record.id for record in client.jobs(limit=3)] == ids[:6:-1]
    assert len(client.jobs(limit=1000)) == 10
    assert client.jobs(queue="none") == []
    assert client.jobs_page(queue="none").before == ids[6]


@pytest.mark.usefixtures("short_looks")
def test_a_list_since_ends_where_all_that_it_looked_at_is_older(client: Any, peer: Peer):
    ids = [client.enqueue(JobSpec.make("t")) for _ in range(20)]
    peer.sql("UPDATE pgqueue.jobs SET created_at = now() - interval '1 day' WHERE id <= %s", ids[13])
    first = client.jobs_page(since="1h", limit=10)
    assert ([record.id for record in first.jobs], first.before) == (ids[:15:-1], ids[16])
    second = client.jobs_page(since="1h", limit=10, before=first.before)
    assert ([record.id for record in second.jobs], second.before) == (ids[15:13:-1], ids[12])
    third = client.jobs_page(since="1h", limit=10, before=second.before)
    assert (third.jobs, third.before) == ([], None)
    assert [record.id for record in client.jobs(since="1h")] == ids[:13:-1]


def test_redrive_and_purge_dead(client: Any, peer: Peer):
    for queue in ("a", "b", "b"):
        client.enqueue(JobSpec.make("t", queue=queue))
    peer.end(peer.claim(queues=["a", "b"]), "dead")
    assert client.redrive(queue="a", task="t", limit=5) == 1
    assert client.redrive(limit=1) == 1
    assert client.purge_dead(queue="a") == 0
    assert client.purge_dead() == 1


def test_a_dry_run_says_how_many_it_would_be_and_changes_nothing(client: Any, peer: Peer):
    for queue in ("a", "b", "b"):
        client.enqueue(JobSpec.make("t", queue=queue, unique_key=queue if queue == "a" else None))
    peer.end(peer.claim(queues=["a", "b"]), "dead")
    blocked = client.enqueue(JobSpec.make("t", queue="c", delay="1h"))
    client.enqueue(JobSpec.make("t", queue="c", depends_on=[blocked]))
    client.enqueue(JobSpec.make("t", queue="c"))
    peer.claim(1, queues=["c"])
    before = client.jobs()
    calls: list[tuple[Any, dict[str, Any], int]] = [
        (client.redrive, {}, 3), (client.redrive, {"queue": "b", "task": "t"}, 2), (client.redrive, {"limit": 1}, 1),
        (client.redrive, {"task": "other"}, 0), (client.purge_dead, {}, 3), (client.purge_dead, {"queue": "a"}, 1),
        (client.purge, {"queue": "c"}, 2), (client.purge, {"queue": "a"}, 0),
    ]  # fmt: skip
    for verb, arguments, expected in calls:
        assert verb(**arguments, dry_run=True) == expected, (verb, arguments)
    assert client.jobs() == before
    held = client.enqueue(JobSpec.make("t", queue="d", unique_key="a"))
    assert client.redrive(dry_run=True) == 2, "a live job holds the key of one"
    client.cancel(held)
    for verb, arguments in ((client.redrive, {"queue": "b"}), (client.purge_dead, {}), (client.purge, {"queue": "c"})):
        assert verb(**arguments, dry_run=True) == verb(**arguments)


def test_pause_resume_purge_and_the_counts(client: Any):
    client.enqueue_many([JobSpec.make("t", queue="q")] * 3)
    assert [client.pause("q"), client.pause("q")] == [True, False]
    (stats,) = client.queues()
    assert (stats.queue, stats.paused, stats.available) == ("q", True, 3)
    assert [client.resume("q"), client.resume("q")] == [True, False]
    assert client.purge("q") == 3


@pytest.mark.parametrize("verb", ["pause", "resume", "purge"])
@pytest.mark.parametrize("queue", ["", "x" * 129, "a\0", None])
def test_a_queue_is_checked_before_any_sql(client: Any, verb: str, queue: Any):
    with pytest.raises(InvalidJobError, match="queue must"):
        getattr(client, verb)(queue)


def test_retention_is_read_and_set(client: Any):
    client.set_retention("dead", "36h")
    assert client.retention() == {
        "completed": timedelta(days=7), "dead": timedelta(hours=36), "cancelled": timedelta(days=30),
    }  # fmt: skip
    with pytest.raises(InvalidJobError, match="'running' is no outcome"):
        client.set_retention("running", "1d")
    with pytest.raises(InvalidJobError, match="retention"):
        client.set_retention("dead", "-1d")


def test_workers_are_those_heard_of_lately(client: Any, peer: Peer):
    peer.sql("""INSERT INTO pgqueue.workers (name, host, pid, queues, slots, version, heartbeat_at) VALUES
        ('one', 'h', 1, '{q}', 5, '1', now()), ('old', 'h', 2, '{q,r}', 5, '1', now() - interval '1 minute')""")
    workers = {worker.name: worker for worker in client.workers()}
    assert (workers["one"].alive, workers["old"].alive, workers["old"].queues) == (True, False, ["q", "r"])


@pytest.mark.parametrize("number", ["1" + "0" * 5000, "1e131071"])
def test_a_strange_payload_from_sql_does_not_hide_the_other_jobs(client: Any, peer: Peer, number: str):
    job_id = peer.value(f"SELECT pgqueue.enqueue('t', '[{number}]')")
    assert [record.id for record in client.jobs()] == [job_id]


def test_a_deep_payload_from_sql_does_not_hide_the_other_jobs(client: Any, peer: Peer):
    job_id = peer.value("SELECT pgqueue.enqueue('t', %s::jsonb)", "[" * 1500 + "]" * 1500)
    assert [record.id for record in client.jobs()] == [job_id]


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_is_found_by_its_secret_until_it_is_revoked(client: Any):
    record, secret = client.create_token("ci", ["work", "enqueue"], ["mail*"], "90d")
    assert (record.name, record.scopes, record.queues) == ("ci", ("enqueue", "work"), ("mail*",))
    assert record.expires_at - record.created_at == timedelta(days=90)
    assert record.created_at.utcoffset() == record.expires_at.utcoffset() == timedelta(0)
    assert (record.last_used_at, record.expired) == (None, False)
    assert client.find_token(secret) == record
    (listed,) = client.tokens()
    assert listed.last_used_at >= record.created_at
    client.revoke_token("ci")
    assert client.find_token(secret) is None
    assert client.tokens() == []
    (revoked,) = client.tokens(revoked=True)
    assert (revoked.id, revoked.last_used_at) == (record.id, listed.last_used_at)
    assert revoked.revoked_at >= record.created_at
    assert not revoked.allows("work")


def test_a_queue_that_once_had_a_token_has_tokens_for_ever(client: Any, peer: Peer):
    assert client.has_tokens() is False
    client.create_token("ci", ["read"])
    assert client.has_tokens() is True
    peer.sql("UPDATE pgqueue.tokens SET expires_at = now()")
    assert client.has_tokens() is True
    client.revoke_token("ci")
    assert client.has_tokens() is True


def test_a_token_is_for_every_queue_and_for_ever_unless_said_otherwise(client: Any):
    record, _ = client.create_token("ci", ["read"])
    assert (record.queues, record.expires_at) == (("*",), None)


def test_tokens_come_by_name_and_each_has_a_secret_of_its_own(client: Any):
    made = [client.create_token(name, ["read"]) for name in ("b", "a", "c")]
    assert [record.name for record in client.tokens()] == ["a", "b", "c"]
    assert [client.find_token(secret).name for _, secret in made] == ["b", "a", "c"]
    assert len({secret for _, secret in made}) == 3


def test_a_name_is_one_tokens_until_that_is_revoked(client: Any):
    first, secret = client.create_token("ci", ["read"])
    with pytest.raises(TokenExistsError, match="a token 'ci' already; revoke it") as caught:
        client.create_token("ci", ["admin"])
    assert caught.value.name == "ci"
    assert client.find_token(secret).scopes == ("read",)
    client.revoke_token("ci")
    second, _ = client.create_token("ci", ["admin"])
    assert second.id > first.id
    assert client.find_token(secret) is None
    assert [record.id for record in client.tokens()] == [second.id]
    assert [record.id for record in client.tokens(revoked=True)] == [first.id, second.id]


def test_a_token_that_is_not_there_can_not_be_revoked(client: Any):
    client.create_token("ghost", ["read"])
    client.revoke_token("ghost")
    (before,) = client.tokens(revoked=True)
    with pytest.raises(TokenNotFoundError, match="no token 'ghost'; see: pgq token list") as caught:
        client.revoke_token("ghost")
    assert caught.value.name == "ghost"
    assert client.tokens(revoked=True) == [before]


def test_a_token_without_a_meaning_is_refused_and_nothing_is_written(client: Any):
    for arguments in (("", ["read"]), ("ci", []), ("ci", ["read"], []), ("ci", ["read"], ["*"], 0)):
        with pytest.raises(InvalidJobError):
            client.create_token(*arguments)
    assert client.tokens() == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("secret", ["", "pgq_", "Bearer x", "pgq_" + "0" * 63, "pgq_" + "G" * 64, "\0", "\udc80", None])
def test_what_is_no_secret_is_unknown_and_asks_no_server(secret: Any):
    assert Client(Database(lambda: NOWHERE)).find_token(secret) is None


def test_the_secret_of_a_token_is_neither_stored_nor_logged(client: Any, peer: Peer, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("DEBUG"):
        record, secret = client.create_token("ci", ["read"])
        found = client.find_token(secret)
    bits = secret.removeprefix("pgq_")
    ((row,),) = peer.sql("SELECT to_jsonb(t)::text FROM pgqueue.tokens t")
    assert "ci" in row
    for text in (row, caplog.text, repr(record), repr(found)):
        assert bits not in text


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_token_joins_the_callers_transaction(database: Database, dsn: str, ends: str):
    client = Client(database)
    with psycopg.connect(dsn) as connection:
        _, secret = client.create_token("ci", ["read"], connection=connection)
        assert client.find_token(secret, connection=connection)
        assert client.find_token(secret) is None
        getattr(connection, ends)()
    assert len(client.tokens()) == (ends == "commit")
    database.close()


# -- many ------------------------------------------------------------------------------------------------------------


def facts(peer: Peer, job_id: int) -> dict[str, Any]:
    """The row of a job, without what must differ; a delay as the distance from the enqueue."""
    ((row,),) = peer.sql(
        """
        SELECT to_jsonb(j) - '{id, run_at, created_at}'::text[] || jsonb_build_object(
            'timeout', extract(epoch FROM timeout),
            'wait', extract(epoch FROM CASE WHEN run_at IN ('1970-01-01Z', '2030-05-06 07:08:09.123456Z')
                THEN run_at - '1970-01-01Z' ELSE run_at - created_at END))
        FROM pgqueue.jobs j WHERE id = %s""",
        job_id,
    )
    return row


@pytest.mark.parametrize("copy", [False, True], ids=["sql", "copy"])
def test_many_jobs_are_the_same_rows_as_jobs_one_by_one(client: Any, peer: Peer, copy: bool, dsn: str):
    specs = [*SPECS, *(one._replace(payload=str(n)) for n, one in enumerate(SPECS * 2)), SPECS[0], SPECS[0]]
    one_by_one = [client.enqueue(spec) for spec in specs]
    together = client.enqueue_many(iter(specs), copy=copy)
    for spec, single, many in zip(specs, one_by_one, together, strict=True):
        expected, found = facts(peer, single), facts(peer, many)
        assert found.pop("wait") == pytest.approx(expected.pop("wait"), abs=0.001), spec
        assert found == expected, spec
        assert client.get(many).payload == json.loads(spec.payload)
    invariants.check(dsn, [*one_by_one, *together])


@pytest.mark.parametrize("copy", [False, True], ids=["sql", "copy"])
def test_no_jobs_are_no_ids(client: Any, copy: bool):
    assert client.enqueue_many([], copy=copy) == []


def test_a_copy_of_many_blocks_lands_whole_and_in_order(client: Any, peer: Peer, dsn: str):
    ids = client.enqueue_many((JobSpec.make("t", n) for n in range(12_345)), copy=True)
    assert ids == sorted(ids)
    assert peer.value("SELECT bool_and(payload = to_jsonb(id - %s)) FROM pgqueue.jobs", ids[0]) is True
    assert len(peer.claim(100).ids) == 100
    invariants.check(dsn, ids)


def test_a_copy_rings_the_bell_when_somebody_sleeps(client: Any, peer: Peer):
    peer.sql('LISTEN "pgqueue.wake"')
    assert peer.value("SELECT pg_try_advisory_lock_shared(pgqueue.bell_key('q'))")
    client.enqueue_many([JobSpec.make("t", queue="q")] * 3, copy=True)
    assert [note.payload for note in peer.connection.notifies(timeout=30, stop_after=1)] == ["q"]


def test_a_copy_of_jobs_that_are_due_later_wakes_nobody(client: Any, peer: Peer):
    peer.sql('LISTEN "pgqueue.wake"')
    for queue in "abcd":
        assert peer.value("SELECT pg_try_advisory_lock_shared(pgqueue.bell_key(%s))", queue)
    specs = [
        JobSpec.make("t", queue="a", delay="2m"), JobSpec.make("t", queue="b", run_at=NOW),
        JobSpec.make("t", queue="c", delay="50s"), JobSpec.make("t", queue="d", delay="1h"),
        JobSpec.make("t", queue="d"),
    ]  # fmt: skip
    client.enqueue_many(specs, copy=True)
    peer.sql("SELECT pg_notify('pgqueue.wake', 'the end')")
    notes = peer.connection.notifies(timeout=30, stop_after=3)
    assert sorted(note.payload for note in notes) == ["c", "d", "the end"]


def test_a_copy_has_no_unique_keys(client: Any, peer: Peer):
    with pytest.raises(InvalidJobError, match="job 1: unique_key and depends_on do not go together with copy=True"):
        client.enqueue_many([JobSpec.make("t"), JobSpec.make("t", unique_key="k")], copy=True)
    assert peer.value("SELECT count(*) FROM pgqueue.jobs") == 0


def test_one_bad_job_refuses_the_batch_and_is_named(client: Any, peer: Peer):
    """A JobSpec made past the checks, as another language might send it."""
    for bad, error, message in (
        (JobSpec("t", priority=99), InvalidJobError, "job 1: priority must be"),
        (JobSpec("t", '"' + "x" * 2**20 + '"'), InvalidPayloadError, "job 1: payload of"),
        (JobSpec(""), InvalidJobError, "job 1: task must"),
    ):
        with pytest.raises(error, match=message):
            client.enqueue_many([JobSpec.make("t"), bad])
    assert peer.value("SELECT count(*) FROM pgqueue.jobs") == 0


def test_a_copy_takes_the_next_jobs_while_the_server_takes_in_the_last(client: Any, peer: Peer):
    """More than one COPY's worth: jobs are on the server before the last one is made, and none can be seen."""
    seen = []

    def jobs() -> Iterator[JobSpec]:
        for n in range(45_001):
            if n == 45_000:
                seen.append(peer.value("SELECT pg_relation_size('pgqueue.jobs') > 0"))
                seen.append(peer.value("SELECT count(*) FROM pgqueue.jobs"))
            yield JobSpec("t", str(n))

    ids = client.enqueue_many(jobs(), copy=True)
    assert seen == [True, 0]
    assert len(ids) == len(set(ids)) == 45_001
    assert peer.value(
        "SELECT count(*) FROM unnest(%s::bigint[]) WITH ORDINALITY AS given (id, nth) JOIN pgqueue.jobs USING (id)"
        " WHERE payload = to_jsonb(nth - 1)", ids,
    ) == 45_001  # fmt: skip


@pytest.mark.parametrize("count", [1, 999, 1_000, 1_001, 2_000, 3_000])
@pytest.mark.parametrize("kind", [list, iter])
def test_a_copy_of_any_length_draws_few_ids_too_many(client: Any, peer: Peer, count: int, kind: Callable[..., Any]):
    ids = client.enqueue_many(kind([JobSpec("t", str(n)) for n in range(count)]), copy=True)
    assert ids == list(range(1, count + 1))
    assert peer.value("SELECT array_agg(payload::int ORDER BY id) FROM pgqueue.jobs") == list(range(count))
    assert peer.value("SELECT last_value FROM pgqueue.jobs_id_seq") <= (count if kind is list else 2 * count)


def test_an_error_of_the_callers_iterator_leaves_nothing(client: Any, peer: Peer):
    def jobs() -> Iterator[JobSpec]:
        for _ in range(2_500):
            yield JobSpec.make("t")
        raise LookupError("no more of them")

    with pytest.raises(LookupError, match="no more of them"):
        client.enqueue_many(jobs(), copy=True)
    assert peer.value("SELECT count(*) FROM pgqueue.jobs") == 0
    assert client.enqueue_many([JobSpec.make("t")], copy=True)


@pytest.mark.parametrize("fails", [False, True], ids=["complete", "failing"])
def test_a_copy_that_lost_a_deadlock_is_done_again_as_a_whole(client: Any, peer: Peer, fails: bool):
    """The iterator is asked once for each job; and what failed does not look complete the second time."""
    peer.sql("CREATE SEQUENCE seen")
    peer.sql("""
        CREATE FUNCTION lose_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('seen') = 1500 THEN RAISE 'chosen as the victim' USING ERRCODE = '40P01'; END IF;
            RETURN new;
        END $$
    """)
    peer.sql("CREATE TRIGGER lose_once BEFORE INSERT ON pgqueue.jobs FOR EACH ROW EXECUTE FUNCTION lose_once()")
    asked = []

    def jobs() -> Iterator[JobSpec]:
        for n in range(5_000):
            asked.append(n)
            if fails and n == 4_500:
                raise LookupError("no more of them")
            yield JobSpec("t", str(n))

    if fails:
        with pytest.raises(LookupError, match="no more of them"):
            client.enqueue_many(jobs(), copy=True)
    else:
        assert len(set(client.enqueue_many(jobs(), copy=True))) == 5_000
        assert peer.value("SELECT last_value FROM seen") == 6_500
        assert peer.value("SELECT count(DISTINCT payload) FROM pgqueue.jobs") == 5_000
    assert peer.value("SELECT count(*) FROM pgqueue.jobs") == (0 if fails else 5_000)
    assert asked == list(range(4_501 if fails else 5_000))


@pytest.mark.parametrize("wrong", [JobSpec("t", unique_key="k"), None], ids=["unique", "raising"])
def test_the_callers_transaction_outlives_what_can_not_be_copied(database: Database, dsn: str, wrong: JobSpec | None):
    def jobs() -> Iterator[JobSpec]:
        yield from [JobSpec.make("t")] * 1_500
        if wrong is None:
            raise LookupError
        yield wrong

    client = Client(database)
    with psycopg.connect(dsn) as connection:
        with pytest.raises((InvalidJobError, LookupError)):
            client.enqueue_many(jobs(), copy=True, connection=connection)
        client.enqueue(JobSpec.make("t"), connection=connection)
    assert len(client.jobs()) == 1
    database.close()


def test_a_copy_that_the_table_refuses_leaves_nothing(client: Any, peer: Peer):
    with pytest.raises(DatabaseError, match="priority_is_0_to_9"):
        client.enqueue_many([JobSpec.make("t"), JobSpec("t", priority=99)], copy=True)
    assert peer.value("SELECT count(*) FROM pgqueue.jobs") == 0
    assert client.enqueue(JobSpec.make("t"))


# -- the caller's connection -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_the_verbs_join_the_transaction_of_a_psycopg_connection(database: Database, dsn: str, ends: str):
    client = Client(database)
    with psycopg.connect(dsn) as connection:
        ids = [client.enqueue(JobSpec.make("t"), connection=connection)]
        ids += client.enqueue_many([JobSpec.make("t")] * 2, connection=connection)
        ids += client.enqueue_many([JobSpec.make("t")] * 2, copy=True, connection=connection)
        assert client.cancel(ids[0], connection=connection) == "cancelled"
        assert [record.id for record in client.jobs(connection=connection)] == ids[::-1]
        assert client.jobs() == []
        getattr(connection, ends)()
    invariants.check(dsn, ids if ends == "commit" else [])
    database.close()


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_the_verbs_join_the_transaction_of_an_async_connection(database: Database, dsn: str, ends: str):
    client = AsyncClient(database)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        ids = [await client.enqueue(JobSpec.make("t"), connection=connection)]
        ids += await client.enqueue_many([JobSpec.make("t")] * 2, connection=connection)
        ids += await client.enqueue_many([JobSpec.make("t")] * 2, copy=True, connection=connection)
        assert await client.cancel(ids[0], connection=connection) == "cancelled"
        assert await client.jobs() == []
        await getattr(connection, ends)()
    invariants.check(dsn, ids if ends == "commit" else [])
    await database.aclose()


def test_a_refusal_leaves_the_callers_connection_usable_after_its_savepoint(database: Database, dsn: str):
    client = Client(database)
    with psycopg.connect(dsn) as connection:
        kept = client.enqueue(JobSpec.make("t"), connection=connection)
        with pytest.raises(InvalidJobError), connection.transaction():
            client.enqueue(JobSpec("t", priority=99), connection=connection)
    invariants.check(dsn, [kept])


async def test_a_connection_of_the_wrong_kind_is_a_clear_type_error(database: Database, dsn: str):
    spec = JobSpec.make("t")
    with (
        psycopg.connect(dsn) as connection,
        pytest.raises(TypeError, match=r"psycopg connection .*sync for enqueue_sync"),
    ):
        await AsyncClient(database).enqueue(spec, connection=connection)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        with pytest.raises(TypeError, match=r"psycopg connection .*sync for enqueue_sync"):
            Client(database).enqueue(spec, connection=connection)
    with pytest.raises(TypeError, match="object is no connection that pgqueue knows"):
        Client(database).enqueue(spec, connection=object())


# -- the server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgqueue.connection._POOL_PATIENCE", 0.3)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_not_there_is_unreachable():
    database = Database(lambda: NOWHERE)
    with pytest.raises(DatabaseUnreachableError, match="can't be reached"):
        Client(database).enqueue(JobSpec.make("t"))
    database.close()


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_is_not_there_is_unreachable_for_async_code_too():
    database = Database(lambda: NOWHERE)
    with pytest.raises(DatabaseUnreachableError, match="can't be reached"):
        await AsyncClient(database).enqueue(JobSpec.make("t"))
    await database.aclose()


def test_what_is_no_connection_string_is_a_typed_error():
    with pytest.raises(DatabaseError, match="not a PostgreSQL connection string"):
        Client(Database(lambda: "nonsense nonsense")).queues()


@pytest.mark.parametrize(
    "dsn",
    [
        "postgres//user:s3cret@host/db",
        "postgresql://user:s3c%zzret@host/db",
        "postgresql://user:s3cret@[host/db",
        "postgresql://user:s3cret@[]/db",
        "host=h password=a\ns3cret",
        'host=h password=a s3cret"or"s3cret',
        "postgresql://u@h/d?password=s3cret=",
    ],
)
def test_what_is_no_connection_string_is_refused_without_its_password(dsn: str):
    with pytest.raises(DatabaseError, match="not a PostgreSQL connection string: ") as refused:
        connection_string(dsn)
    assert not re.search("s3c|ret", str(refused.value))


def test_an_option_that_there_is_not_is_named():
    with pytest.raises(DatabaseError, match='"conect_timeout"'):
        connection_string("host=h conect_timeout=3")
    with pytest.raises(DatabaseError, match='"conect_timeout"'):
        connection_string("postgresql://h/d?conect_timeout=3")


def test_a_missing_schema_says_what_to_run(empty_dsn: str):
    database = Database(lambda: empty_dsn)
    for action in (
        lambda c: c.enqueue(JobSpec.make("t")),
        lambda c: c.queues(),
        lambda c: c.enqueue_many([JobSpec.make("t")]),
    ):
        with pytest.raises(SchemaError, match="run: pgq migrate"):
            action(Client(database))
    database.close()


def test_a_pooled_connection_that_the_server_closed_is_replaced_unseen(client: Any, peer: Peer, dsn: str):
    ids = [client.enqueue(JobSpec.make("t"))]
    for _ in range(2):
        killed = peer.sql("""SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                             WHERE datname = current_database() AND application_name = 'pgqueue'""")
        assert killed
        ids.append(client.enqueue(JobSpec.make("t")))
    invariants.check(dsn, ids)


def test_a_connection_that_breaks_within_a_statement_is_unreachable_and_the_next_works(client: Any, peer: Peer):
    client.enqueue(JobSpec.make("t"))
    suicide = Statement("SELECT pg_terminate_backend(pg_backend_pid())", None, list)
    with pytest.raises(DatabaseUnreachableError):
        client._run(suicide, None)
    assert client.queues()[0].available == 1


@pytest.fixture
def flaky(peer: Peer) -> Callable[[str, int], Statement[Any]]:
    """A statement that fails with this SQLSTATE the first times; a sequence remembers across rollbacks."""
    peer.sql("""
        CREATE SEQUENCE calls;
        CREATE FUNCTION flaky(state text, times integer) RETURNS bigint LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('calls') <= times THEN RAISE EXCEPTION 'not now' USING ERRCODE = state; END IF;
            RETURN currval('calls');
        END $$""")
    return lambda state, times: Statement(
        "SELECT flaky(%(state)s, %(times)s::integer)", {"state": state, "times": times}, lambda rows: rows[0][0]
    )


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_a_deadlock_or_serialization_failure_is_said_again(client: Any, flaky: Callable[..., Any], state: str):
    assert client._run(flaky(state, 3), None) == 4


def test_it_is_not_said_again_for_ever(client: Any, peer: Peer, flaky: Callable[..., Any]):
    with pytest.raises(DatabaseError, match="not now"):
        client._run(flaky("40001", 1000), None)
    assert peer.value("SELECT last_value FROM calls") == 8


def test_another_failure_is_said_once(client: Any, peer: Peer, flaky: Callable[..., Any]):
    with pytest.raises(DatabaseError, match="not now"):
        client._run(flaky("P0001", 1000), None)
    assert peer.value("SELECT last_value FROM calls") == 1


def test_in_the_callers_transaction_nothing_is_said_again(database: Database, peer: Peer, flaky: Callable[..., Any]):
    with pytest.raises(DatabaseError, match="not now"):
        Client(database)._run(flaky("40001", 1), peer.connection)
    assert peer.value("SELECT last_value FROM calls") == 1


def test_a_closed_database_opens_again(database: Database, dsn: str):
    client = Client(database)
    ids = [client.enqueue(JobSpec.make("t"))]
    database.close()
    database.close()
    ids.append(client.enqueue(JobSpec.make("t")))
    database.close()
    invariants.check(dsn, ids)


@pytest.fixture
async def aclient(database: Database) -> AsyncIterator[AsyncClient]:
    yield AsyncClient(database)
    await database.aclose()


async def test_many_coroutines_share_the_pool(aclient: AsyncClient, dsn: str):
    import asyncio

    ids = await asyncio.gather(*(aclient.enqueue(JobSpec.make("t")) for _ in range(100)))
    invariants.check(dsn, ids)
