"""pgqueue.enqueue and pgqueue.enqueue_many: the public contract for every language, in plain SQL."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import invariants
import psycopg
import pytest
from peers import Peer
from psycopg import errors

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1024 * 1024
BELL = "SELECT pg_try_advisory_lock_shared(pgqueue.bell_key(%s))"


def refused(peer: Peer, query: str, *params: Any) -> tuple[str | None, str | None, str | None]:
    """The SQLSTATE, message and hint of a refusal; nothing may have been written."""
    with pytest.raises(psycopg.Error) as caught:
        peer.sql(query, *params)
    assert peer.value("SELECT count(*) FROM pgqueue.jobs") == 0
    return caught.value.sqlstate, caught.value.diag.message_primary, caught.value.diag.message_hint


def jobs(peer: Peer, columns: str = "id") -> list[Any]:
    rows = peer.sql(f"SELECT {columns} FROM pgqueue.jobs ORDER BY id")
    return rows if "," in columns else [value for (value,) in rows]


def many(peer: Peer, *given: Any) -> list[int]:
    return [job_id for (job_id,) in peer.sql("SELECT pgqueue.enqueue_many(%s::jsonb)", json.dumps(given))]


def together(peer: Peer, *given: Any) -> list[int]:
    return [job_id for (job_id,) in peer.sql("SELECT pgqueue.enqueue_together(%s::jsonb)", json.dumps(given))]


# -- one -------------------------------------------------------------------------------------------------------------


def test_the_task_alone_is_enough_and_the_defaults_are_the_documented_ones(one: Peer):
    one.begin()
    job_id = one.value("SELECT pgqueue.enqueue('echo')")
    now = one.value("SELECT now()")
    record = one.job(job_id)
    one.commit()
    assert (record.task, record.payload, record.queue, record.priority) == ("echo", {}, "default", 5)
    assert (record.max_attempts, record.attempt, record.state) == (10, 0, "available")
    assert record.run_at == record.created_at == now
    assert (record.timeout, record.unique_key, record.meta, record.errors) == (None, None, {}, [])


def test_every_argument_has_a_name_and_lands_in_its_column(one: Peer):
    job_id = one.value("""
        SELECT pgqueue.enqueue(
            task => 'Ünïcode ✓ "quoted"', payload => '[1, "zwei"]', queue => 'a.b/c d', priority => 0,
            run_at => '2030-01-02 03:04:05+00', max_attempts => 32767, timeout => '90 seconds', unique_key => 'k',
            meta => '{"trace": "t"}')""")
    record = one.job(job_id)
    assert (record.task, record.payload, record.queue) == ('Ünïcode ✓ "quoted"', [1, "zwei"], "a.b/c d")
    assert (record.priority, record.max_attempts, record.unique_key) == (0, 32767, "k")
    assert (record.run_at.isoformat(), record.timeout) == ("2030-01-02T03:04:05+00:00", timedelta(seconds=90))
    assert (record.meta, record.state) == ({"trace": "t"}, "scheduled")


def test_a_delay_counts_from_the_transactions_beginning(one: Peer):
    one.begin()
    one.sql("SELECT pgqueue.enqueue('t', delay => '1 hour')")
    assert jobs(one, "run_at - now()") == [timedelta(hours=1)]
    one.commit()


def test_a_delay_of_zero_and_a_time_in_the_past_are_due_at_once(one: Peer):
    one.sql("SELECT pgqueue.enqueue('t', delay => '0'), pgqueue.enqueue('t', run_at => '2001-01-01')")
    assert len(one.claim().ids) == 2


@pytest.mark.parametrize("payload", ["null", "0", "false", '""', "[]", '"text"', "1.25e-5", '{"a": {"b": [null]}}'])
def test_any_json_value_is_a_payload(one: Peer, payload: str):
    job_id = one.value("SELECT pgqueue.enqueue('t', %s::jsonb)", payload)
    assert one.job(job_id).payload == json.loads(payload)


@pytest.mark.parametrize("priority", [0, 9])
def test_the_bounds_of_priority_are_accepted(one: Peer, priority: int):
    assert one.job(one.value("SELECT pgqueue.enqueue('t', priority => %s)", priority)).priority == priority


def test_the_longest_names_are_accepted(one: Peer):
    long = "ä" * 128
    job_id = one.value("SELECT pgqueue.enqueue(%s, queue => %s, unique_key => %s)", long, long, "k" * 512)
    assert one.job(job_id).queue == long


TASK, QUEUE = "task must have 1 to 128 characters", "queue must have 1 to 128 characters"
PRIORITY, ATTEMPTS = "priority must be 0 (first) to 9 (last)", "max_attempts must be 1 to 32767"
TIMEOUT, RUN_AT = "timeout must be positive, and at most 36500 days", "run_at must be finite, from 1970 to 9998"
KEY, BOTH = "unique_key must have 1 to 512 characters", "say delay or run_at, not both"
BAD = [
    ("NULL", TASK),
    ("''", TASK),
    ("repeat('x', 129)", TASK),
    ("'t', queue => NULL", QUEUE),
    ("'t', queue => ''", QUEUE),
    ("'t', queue => repeat('x', 1024)", QUEUE),
    ("'t', payload => NULL", "payload must not be NULL; say '{}' or 'null'::jsonb"),
    ("'t', priority => -1", PRIORITY),
    ("'t', priority => 10", PRIORITY),
    ("'t', priority => 2147483647", PRIORITY),
    ("'t', priority => NULL", PRIORITY),
    ("'t', max_attempts => 0", ATTEMPTS),
    ("'t', max_attempts => 32768", ATTEMPTS),
    ("'t', max_attempts => NULL", ATTEMPTS),
    ("'t', delay => '1s', run_at => now()", BOTH),
    ("'t', delay => '-1s'", "delay must not be negative"),
    ("'t', timeout => '0'", TIMEOUT),
    ("'t', timeout => '-1s'", TIMEOUT),
    ("'t', unique_key => ''", KEY),
    ("'t', unique_key => repeat('x', 513)", KEY),
    ("'t', run_at => 'infinity'", RUN_AT),
    ("'t', run_at => '-infinity'", RUN_AT),
    ("'t', run_at => '1969-12-31'", RUN_AT),
    ("'t', run_at => '4713-01-01 BC'", RUN_AT),
    ("'t', run_at => '200000-01-01'", RUN_AT),
    ("'t', delay => '20000 years'", RUN_AT),
    ("'t', timeout => '102 years'", TIMEOUT),
    ("'t', timeout => '100000000 years'", TIMEOUT),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[arguments for arguments, _ in BAD])
def test_a_bad_argument_is_refused_by_name_with_22023(one: Peer, arguments: str, message: str):
    assert refused(one, f"SELECT pgqueue.enqueue({arguments})") == ("22023", message, None)


def test_a_payload_over_a_mebibyte_is_refused_with_54000_and_a_hint(one: Peer):
    state, message, hint = refused(one, "SELECT pgqueue.enqueue('t', to_jsonb(repeat('x', %s)))", MIB)
    assert state == "54000"
    assert message
    assert message.endswith("bytes is over the limit of 1048576")
    assert hint == "Store the data in a table of your own and enqueue its key."
    assert one.value("SELECT pgqueue.enqueue('t', to_jsonb(repeat('x', %s)))", MIB - 100)


def test_a_large_payload_is_refused_also_when_it_comes_compressed_from_a_table(one: Peer):
    one.sql("CREATE TABLE source (p jsonb)")
    one.sql("INSERT INTO source VALUES (to_jsonb(repeat('x', 5 * 1024 * 1024)))")
    assert refused(one, "SELECT pgqueue.enqueue('t', p) FROM source")[0] == "54000"


@pytest.mark.parametrize(
    "meta", ["to_jsonb(repeat('x', 2000000))", "jsonb_build_object('a', repeat('x', 2000000))", "'[1]'"]
)
def test_meta_has_the_same_rule_in_sql_as_in_python(one: Peer, meta: str):
    refused(one, f"SELECT pgqueue.enqueue('t', meta => {meta})")


@pytest.mark.parametrize("argument", ["run_at => '1970-01-01Z'", "run_at => '9998-12-31Z'", "timeout => '36500 days'"])
def test_every_time_that_is_accepted_can_be_read_and_claimed_by_python(one: Peer, argument: str):
    job_id = one.value(f"SELECT pgqueue.enqueue('t', {argument})")
    assert one.job(job_id).id == job_id
    one.make_due(job_id)
    assert one.claim().ids == [job_id]


# -- in the caller's transaction -------------------------------------------------------------------------------------


def test_a_rollback_leaves_no_job_and_rings_no_bell(one: Peer, two: Peer):
    two.sql('LISTEN "pgqueue.wake"')
    two.value(BELL, "default")
    one.begin()
    one.enqueue()
    many(one, {"task": "t"})
    one.rollback()
    assert jobs(one) == []
    assert heard(two) == []


def test_a_commit_leaves_exactly_one_job_and_rings_once(one: Peer, two: Peer, dsn: str):
    two.sql('LISTEN "pgqueue.wake"')
    two.value(BELL, "default")
    one.begin()
    job_id = one.enqueue()
    assert two.claim().ids == []
    assert heard(two) == []
    one.commit()
    assert heard(two) == ["default"]
    assert jobs(two) == [job_id]
    invariants.check(dsn, [job_id])


def test_a_savepoint_that_is_rolled_back_takes_its_job_along(one: Peer, dsn: str):
    one.begin()
    kept = one.enqueue()
    one.sql("SAVEPOINT s")
    one.enqueue()
    one.sql("ROLLBACK TO s")
    one.commit()
    invariants.check(dsn, [kept])


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_enqueue_works_in_every_isolation_level(one: Peer, isolation: str, dsn: str):
    one.begin(isolation)
    ids = [one.enqueue(), one.enqueue(unique_key="k"), *many(one, {"task": "t", "unique_key": "l"}, {"task": "t"})]
    assert one.enqueue(unique_key="k") == ids[1]
    one.commit()
    invariants.check(dsn, ids)


# -- the bell --------------------------------------------------------------------------------------------------------


def heard(peer: Peer) -> list[str]:
    """What has been notified up to now: a notification of our own marks the end."""
    peer.sql("LISTEN mark")
    peer.sql("NOTIFY mark")
    found = []
    for note in peer.connection.notifies(timeout=30):
        if note.channel == "mark":
            break
        found.append(note.payload)
    return found


RINGERS: dict[str, Callable[[Peer], Any]] = {
    "enqueue": lambda peer: peer.enqueue(queue="q"),
    "enqueue unique": lambda peer: peer.enqueue(queue="q", unique_key="k"),
    "enqueue_many": lambda peer: many(peer, {"task": "t", "queue": "q"}, {"task": "t", "queue": "q"}),
    "enqueue_together": lambda peer: together(peer, {"task": "t", "queue": "q"}, {"task": "t", "queue": "q"}),
    "ring": lambda peer: peer.sql("SELECT pgqueue.ring('q')"),
}


@pytest.mark.parametrize("name", RINGERS)
def test_the_bell_rings_only_when_somebody_sleeps_beside_it(one: Peer, two: Peer, name: str):
    two.sql('LISTEN "pgqueue.wake"')
    RINGERS[name](one)
    assert heard(two) == [], "nobody sleeps"
    one.sql("DELETE FROM pgqueue.jobs")
    assert two.value(BELL, "other")
    RINGERS[name](one)
    assert heard(two) == [], "somebody sleeps at another queue"
    one.sql("DELETE FROM pgqueue.jobs")
    assert two.value(BELL, "q")
    RINGERS[name](one)
    assert heard(two) == ["q"]
    assert one.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()") == 0


def test_a_job_that_is_due_later_than_a_sleep_rings_no_bell(one: Peer, two: Peer):
    two.sql('LISTEN "pgqueue.wake"')
    two.value(BELL, "default")
    one.enqueue(delay=90)
    many(one, {"task": "t", "delay": "90s"})
    together(one, {"task": "t", "delay": "90s"}, {"task": "t", "queue": "other"})
    assert heard(two) == []
    one.enqueue(delay=50)
    assert heard(two) == ["default"]


def test_an_answer_with_the_existing_id_rings_no_bell(one: Peer, two: Peer):
    one.enqueue(unique_key="k")
    two.sql('LISTEN "pgqueue.wake"')
    two.value(BELL, "default")
    one.enqueue(unique_key="k")
    assert heard(two) == []


def test_the_bell_looks_at_how_full_the_notification_queue_is(one: Peer):
    """A full queue would fail the COMMIT of an enqueue; filling 8 GB here would not be kind. So: the guard is there."""
    assert one.value("SELECT pg_notification_queue_usage() < 0.5") is True
    for function in ("enqueue", "ring"):
        body = one.value("SELECT prosrc FROM pg_proc WHERE oid = ('pgqueue.' || %s)::regproc", function)
        assert body.index("pg_notification_queue_usage() < 0.5") < body.index("pg_notify(")


# -- unique keys -----------------------------------------------------------------------------------------------------


def test_a_live_key_answers_the_id_that_holds_it_and_changes_nothing(one: Peer):
    first = one.enqueue("t", {"a": 1}, unique_key="k")
    assert one.enqueue("other", {"a": 2}, unique_key="k", queue="elsewhere") == first
    assert jobs(one, "task, payload, queue") == [("t", {"a": 1}, "default")]


def test_a_key_is_held_through_a_retry_and_free_at_the_end(one: Peer):
    first = one.enqueue(unique_key="k")
    one.end(one.claim(), "retry")
    assert one.enqueue(unique_key="k") == first
    one.end(one.claim())
    assert one.enqueue(unique_key="k") != first


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_the_second_of_two_transactions_waits_for_the_first_ones_end(one: Peer, two: Peer, ends: str, dsn: str):
    one.begin()
    first = one.enqueue(unique_key="k")
    answer = two.behind(lambda: two.enqueue(unique_key="k"))
    getattr(one, ends)()
    second = answer.result(30)
    assert (second == first) == (ends == "commit")
    invariants.check(dsn, [second])


def test_the_holder_may_finish_between_the_two_statements_of_enqueue(one: Peer, two: Peer, dsn: str):
    """The insert finds the key taken by a row whose deletion is not committed: it waits, then takes the key."""
    holder = one.enqueue(unique_key="k")
    claim = one.claim()
    one.begin()
    one.end(claim)
    answer = two.behind(lambda: many(two, {"task": "t", "unique_key": "k"}, {"task": "t"}))
    one.commit()
    ids = answer.result(30)
    assert holder not in ids
    invariants.check(dsn, [holder, *ids])


def test_threads_that_enqueue_and_finish_one_key_never_have_two_alive(dsn: str):
    stop = threading.Event()

    def produce() -> set[int]:
        with Peer(dsn) as peer:
            return {peer.enqueue(unique_key="k") for _ in range(150)}

    def consume() -> None:
        with Peer(dsn) as peer:
            while not stop.is_set():
                claim = peer.claim()
                assert len(claim.ids) <= 1
                peer.end(claim)

    with ThreadPoolExecutor(4) as pool:
        consumer = pool.submit(consume)
        producers = [pool.submit(produce) for _ in range(3)]
        ids = set().union(*(producer.result() for producer in producers))
        stop.set()
        consumer.result()
    invariants.check(dsn, ids)


# -- many ------------------------------------------------------------------------------------------------------------


def test_the_ids_come_in_the_order_given(one: Peer):
    ids = many(one, *({"task": "t", "payload": n, "unique_key": f"k{n}" if n % 3 else None} for n in range(20)))
    assert [
        payload for (payload,) in one.sql("SELECT payload FROM pgqueue.jobs ORDER BY array_position(%s, id)", ids)
    ] == [*range(20)]


def test_an_element_has_the_defaults_and_the_options_of_enqueue(one: Peer):
    options = {
        "task": "t", "payload": None, "queue": "q", "priority": 1, "delay": "1 hour", "max_attempts": 3,
        "timeout": "5 s", "unique_key": "k", "meta": {"m": 1},
    }  # fmt: skip
    plain, full, null = many(
        one, {"task": "plain"}, options, {"task": "t", "queue": None, "meta": None, "run_at": None}
    )
    record, default = one.job(full), one.job(plain)
    assert (record.payload, record.queue, record.priority, record.max_attempts) == (None, "q", 1, 3)
    assert (record.timeout, record.unique_key, record.meta) == (timedelta(seconds=5), "k", {"m": 1})
    assert record.state == "scheduled"
    assert (default.payload, default.queue, default.priority, default.max_attempts) == ({}, "default", 5, 10)
    assert (one.job(null).queue, one.job(null).meta, one.job(null).state) == ("default", {}, "available")


def test_no_jobs_are_no_ids(one: Peer):
    assert many(one) == []


def test_one_key_twice_in_a_batch_is_one_job_with_its_id_twice(one: Peer, dsn: str):
    first, between, again = many(one, {"task": "a", "unique_key": "k"}, {"task": "b"}, {"task": "c", "unique_key": "k"})
    assert first == again
    assert one.job(first).task == "a"
    invariants.check(dsn, [first, between])


def test_a_batch_answers_with_the_ids_of_live_keys(one: Peer):
    held = one.enqueue(unique_key="k")
    ids = many(one, {"task": "t"}, {"task": "t", "unique_key": "k"}, {"task": "t", "unique_key": "new"})
    assert ids[1] == held
    assert len(jobs(one)) == 3


def test_two_batches_with_the_same_keys_in_another_order_do_not_deadlock(
    one: Peer, two: Peer, connect: Callable[[], Peer], dsn: str
):
    """A third transaction holds the first batch in its middle while the second begins."""
    three = connect()
    three.begin()
    middle = three.enqueue(unique_key="m")
    first = one.behind(lambda: many(one, *({"task": "t", "unique_key": key} for key in "amz")))
    second = two.behind(lambda: many(two, *({"task": "t", "unique_key": key} for key in "za")))
    three.commit()
    a, m, z = first.result(30)
    assert m == middle
    assert second.result(30) == [z, a]
    invariants.check(dsn, [a, m, z])


BAD_ELEMENTS: list[tuple[Any, str]] = [
    (3, "must be an object, not number"),
    (None, "must be an object, not null"),
    ([], "must be an object, not array"),
    ({"task": "t", "taks": 1}, "'taks' is not an option"),
    ({}, TASK),
    ({"task": ""}, TASK),
    ({"task": "t", "queue": "x" * 129}, QUEUE),
    ({"task": "t", "priority": 10}, PRIORITY),
    ({"task": "t", "priority": -1}, PRIORITY),
    ({"task": "t", "max_attempts": 0}, ATTEMPTS),
    ({"task": "t", "delay": "1s", "run_at": "2030-01-01"}, BOTH),
    ({"task": "t", "delay": "-1s"}, "delay must not be negative"),
    ({"task": "t", "timeout": "0s"}, TIMEOUT),
    ({"task": "t", "run_at": "infinity"}, RUN_AT),
    ({"task": "t", "unique_key": ""}, KEY),
]


@pytest.mark.parametrize(("element", "message"), BAD_ELEMENTS, ids=[json.dumps(e)[:40] for e, _ in BAD_ELEMENTS])
def test_a_bad_element_refuses_the_batch_and_is_named_by_its_index(one: Peer, element: Any, message: str):
    batch = json.dumps([{"task": "t"}, {"task": "t", "payload": [1]}, element, {"task": "t"}])
    assert refused(one, "SELECT pgqueue.enqueue_many(%s::jsonb)", batch) == ("22023", f"job 2: {message}", None)


def test_an_element_over_a_mebibyte_is_named_by_its_index(one: Peer):
    batch = json.dumps([{"task": "t"}, {"task": "t", "payload": "x" * MIB}])
    state, message, hint = refused(one, "SELECT pgqueue.enqueue_many(%s::jsonb)", batch)
    assert (state, hint) == ("54000", "Store the data in a table of your own and enqueue its key.")
    assert message
    assert message.startswith("job 1: payload of 10485")


@pytest.mark.parametrize(
    "element",
    [
        {"priority": 70_000}, {"priority": "high"}, {"priority": 2.5}, {"max_attempts": 40_000}, {"delay": "soon"},
        {"run_at": "tomorrow-ish"}, {"timeout": {}}, {"max_attempts": []},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_an_element_with_a_value_of_the_wrong_kind_is_named_by_its_index(one: Peer, element: dict[str, Any]):
    batch = json.dumps([{"task": "t"}, {"task": "t", **element}])
    state, message, _ = refused(one, "SELECT pgqueue.enqueue_many(%s::jsonb)", batch)
    assert state
    assert state.startswith("22")
    assert message
    assert message.startswith("job 1: ")


@pytest.mark.parametrize("given", ["{}", "null", "3", '"x"'])
def test_what_is_no_array_is_refused(one: Peer, given: str):
    message = "jobs must be a JSON array of objects"
    assert refused(one, "SELECT pgqueue.enqueue_many(%s::jsonb)", given) == ("22023", message, None)
    assert refused(one, "SELECT pgqueue.enqueue_many(NULL)") == ("22023", message, None)


def test_a_batch_is_all_or_none_in_the_callers_transaction(one: Peer):
    one.begin()
    many(one, {"task": "t"})
    with pytest.raises(errors.InvalidParameterValue):
        many(one, {"task": "t"}, {"task": ""})
    one.rollback()
    assert jobs(one) == []


def test_a_large_batch_lands_whole(one: Peer, dsn: str):
    ids = many(one, *({"task": "t", "payload": n} for n in range(5000)))
    assert ids == sorted(set(ids))
    invariants.check(dsn, ids)


# -- of several callers ----------------------------------------------------------------------------------------------

STORED = """
    run_at - now(), task, payload, queue, priority, max_attempts, timeout, meta, state, attempt, unique_key, group_key,
    lease_token, lease_until, has_followers, batch_id, depends_on, place, due_at
"""


def test_what_goes_together_is_stored_as_by_enqueue(one: Peer):
    full = {
        "payload": {"a": [1]}, "queue": "q", "priority": 0, "delay": "1 hour", "max_attempts": 3, "timeout": "5 s",
        "meta": {"m": 1},
    }  # fmt: skip
    one.begin()
    ids = together(one, {"task": "t"}, {"task": "t", **full}, {"task": "t", "payload": None, "queue": None})
    ids.append(one.value("SELECT pgqueue.enqueue('t')"))
    ids.append(
        one.value("""SELECT pgqueue.enqueue('t', '{"a": [1]}', 'q', 0, '1 hour', NULL, 3, '5 s', meta => '{"m": 1}')""")
    )
    ids.append(one.value("SELECT pgqueue.enqueue('t', 'null')"))
    stored = dict(one.sql(f"SELECT id, ROW({STORED})::text FROM pgqueue.jobs"))
    one.commit()
    assert [stored[job_id] for job_id in ids[:3]] == [stored[job_id] for job_id in ids[3:]]


def test_what_goes_together_rings_once_for_each_queue_in_which_one_is_due(one: Peer, two: Peer):
    two.sql('LISTEN "pgqueue.wake"')
    for queue in ("a", "b", "later"):
        two.value(BELL, queue)
    due = [{"task": "t", "queue": queue} for queue in ("a", "b", "a", "nobody sleeps")]
    later = [{"task": "t", "queue": queue, "delay": "1 hour"} for queue in ("a", "later")]
    together(one, *due, *later)
    assert sorted(heard(two)) == ["a", "b"]


def test_many_that_go_together_are_answered_in_their_order(one: Peer, dsn: str):
    ids = together(one, *({"task": f"t{n}", "priority": n % 10} for n in range(500)))
    assert dict(one.sql("SELECT id, task FROM pgqueue.jobs")) == {job_id: f"t{n}" for n, job_id in enumerate(ids)}
    assert together(one) == []
    invariants.check(dsn, ids)


@pytest.mark.parametrize(
    ("element", "message"),
    [bad for bad in BAD_ELEMENTS if isinstance(bad[0], dict) and not {"taks", "unique_key"} & bad[0].keys()]
    + [
        ({"task": "t", "unique_key": "k"}, "these are for pgqueue.submit_many: unique_key"),
        (
            {"task": "t", "depends_on": [1], "group_key": "g"},
            "these are for pgqueue.submit_many: group_key, depends_on",
        ),
    ],
    ids=json.dumps,
)
def test_one_that_is_refused_refuses_all_that_go_together(one: Peer, element: dict[str, Any], message: str):
    batch = json.dumps([{"task": "t"}, element, {"task": "t"}])
    assert refused(one, "SELECT pgqueue.enqueue_together(%s::jsonb)", batch) == ("22023", message, None)


@pytest.mark.parametrize(
    "element", [3, None, [], {"task": "t", "priority": "high"}, {"task": "t", "payload": "x" * MIB}]
)
def test_what_can_not_be_a_job_refuses_all_that_go_together(one: Peer, element: Any):
    state, _, _ = refused(one, "SELECT pgqueue.enqueue_together(%s::jsonb)", json.dumps([{"task": "t"}, element]))
    assert state
    assert state[:2] in {"22", "54"}
