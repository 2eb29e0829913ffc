"""Who may do what: every role tries every verb, for real; and a caller's own names can't fool the definer functions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors, sql

from pgqueue import statements
from pgqueue.connection import run
from pgqueue.job import JobFilter, JobSpec
from pgqueue.outcome import COMPLETED
from pgqueue.schedule import ScheduleSpec
from pgqueue.sql import load
from pgqueue.statements import Lanes
from pgqueue.tokens import TokenSpec, hash_secret, make_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgqueue.statements import Statement

S = "pgqueue"
SPEC = JobSpec.make("t")
SCHEDULE = ScheduleSpec.make("s", "@daily", "t")
TOKEN = TokenSpec.make("t", ["read"])
LANES = Lanes(["default"], [5], [None], [0])
LEASE = timedelta(seconds=30)

PRODUCER = {
    "enqueue": statements.enqueue(SPEC, schema=S),
    "enqueue unique": statements.enqueue(JobSpec.make("t", unique_key="k"), schema=S),
    "enqueue_many": statements.enqueue_many([SPEC, SPEC], schema=S),
    "enqueue_together": statements.submit_together([SPEC, SPEC], schema=S),
    "enqueue grouped": statements.submit(JobSpec.make("t", group_key="g"), schema=S),
    "create_batch": statements.create_batch("b", schema=S),
}
READER = {
    "get_job": statements.get_job(1, schema=S),
    "list_jobs": statements.list_jobs(JobFilter(), None, 10, schema=S),
    "watch_jobs": statements.watch_jobs([1], schema=S),
    "would_touch": statements.would_touch("redrive", None, schema=S),
    "queue_stats": statements.queue_stats(schema=S),
    "metrics_live": statements.metrics_live(schema=S),
    "metrics_ended": statements.metrics_ended(schema=S),
    "metrics_facts": statements.metrics_facts(schema=S),
    "list_workers": statements.list_workers(schema=S),
    "retention": statements.retention(schema=S),
    "landed": statements.landed([(1, 1)], schema=S),
    "next_due": statements.next_due(statements.Lanes(["default"], [5], [None], [0]), None, schema=S),
    "managed_queues": statements.managed_queues(["default"], schema=S),
    "list_queues": statements.list_queues(schema=S),
    "list_upstream": statements.list_upstream(1, schema=S),
    "tree": statements.tree(1, schema=S),
    "get_batch": statements.get_batch(1, schema=S),
    "list_schedules": statements.list_schedules(schema=S),
    "due_schedules": statements.due_schedules(LEASE, schema=S),
}
WORKER = {
    "claim": statements.claim(LANES, None, 1, 77, LEASE, "w", schema=S),
    "claim_managed": statements.claim_managed("default", LANES, None, 1, 78, LEASE, "w", schema=S),
    "tidy": statements.tidy(schema=S),
    "tick": statements.tick([], datetime.now(UTC), schema=S),
    "declare_schedules": statements.declare_schedules([SCHEDULE], schema=S),
    "forget_ticks": statements.forget_ticks(schema=S),
    "finish": statements.finish([(1, 1, COMPLETED)], [1], schema=S),
    "renew": statements.renew([1], [(1, 1)], LEASE, schema=S),
    "progress": statements.progress([(1, 1, "{}")], schema=S),
    "sweep": statements.sweep(schema=S),
    "prune": statements.prune(schema=S),
    "heartbeat": statements.heartbeat("w", "h", 1, ["q"], 1, 0, "v", False, schema=S),
    "sign_off": statements.sign_off("w", schema=S),
    "ring": statements.ring(["q"], schema=S),
    "reserve_ids": statements.reserve_ids(2, schema=S),
    "find_token": statements.find_token(hash_secret(make_secret()), schema=S),
    "has_tokens": statements.has_tokens(schema=S),
}
ADMIN = {
    "cancel": statements.cancel(1, schema=S),
    "retry": statements.retry(1, schema=S),
    "redrive": statements.redrive(None, None, 10, schema=S),
    "purge": statements.purge("q", schema=S),
    "purge_dead": statements.purge_dead(None, schema=S),
    "pause": statements.pause("q", schema=S),
    "resume": statements.resume("q", schema=S),
    "limit_queue": statements.limit_queue("q", {"max_running": 1}, schema=S),
    "cancel_batch": statements.cancel_batch(1, schema=S),
    "add_schedule": statements.add_schedule(SCHEDULE, True, schema=S),
    "pause_schedule": statements.pause_schedule("s", schema=S),
    "resume_schedule": statements.resume_schedule("s", schema=S),
    "backfill": statements.backfill("s", [datetime(2026, 1, 1, tzinfo=UTC)], schema=S),
    "remove_schedule": statements.remove_schedule("s", schema=S),
    "set_retention": statements.set_retention("dead", LEASE, schema=S),
    "create_token": statements.create_token(TOKEN, hash_secret(make_secret()), schema=S),
    "list_tokens": statements.list_tokens(False, schema=S),
    "revoke_token": statements.revoke_token(TOKEN.name, schema=S),
}
VERBS: dict[str, Statement[Any]] = PRODUCER | READER | WORKER | ADMIN
MAY: dict[str, set[str]] = {
    "pgqueue_producer": {*PRODUCER},
    "pgqueue_reader": {*READER},
    "pgqueue_worker": {*PRODUCER, *READER, *WORKER},
    "pgqueue_admin": {*VERBS},
    "pgqueue_test_nobody": set(),
}


@pytest.fixture
def as_role(dsn: str) -> Iterator[Callable[[str], psycopg.Connection[Any]]]:
    """A connection that is this role and nothing else; it is closed with the database."""
    connections = []

    def connect(role: str) -> psycopg.Connection[Any]:
        with psycopg.connect(dsn, autocommit=True) as owner:
            owner.execute(
                "DO $$ BEGIN CREATE ROLE pgqueue_test_nobody; "
                "EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$"
            )
        connections.append(psycopg.connect(dsn, autocommit=True))
        connections[-1].execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(sql.Identifier(role)))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("role", MAY)
def test_a_role_may_do_what_it_is_for_and_nothing_else(as_role: Callable[[str], psycopg.Connection[Any]], role: str):
    connection = as_role(role)
    allowed = set()
    for name, statement in VERBS.items():
        try:
            run(connection, statement)
        except errors.InsufficientPrivilege:
            continue
        allowed.add(name)
    assert allowed == MAY[role]


@pytest.mark.parametrize("role", MAY)
def test_only_the_worker_and_the_admin_may_copy_into_the_table(
    as_role: Callable[[str], psycopg.Connection[Any]], role: str
):
    cursor = as_role(role).cursor()
    if role in {"pgqueue_worker", "pgqueue_admin"}:
        with cursor.copy(load("copy_jobs")):
            pass
        return
    with pytest.raises(errors.InsufficientPrivilege), cursor.copy(load("copy_jobs")):
        pass


_PRODUCE = {"enqueue", "enqueue_together", "enqueue_many", "submit", "submit_many", "create_batch"}
_LOOK = {"tokens_now", "related", "autoscale"}
_WORK = {"bell_key", "ring", "prune", "claim_managed", "settle", "tidy",
         "tick", "declare_schedules", "forget_ticks", "find_token", "has_tokens"}  # fmt: skip
_OPERATE = {"cancel", "retry", "redrive", "purge", "purge_dead", "pause", "resume", "limit_queue", "cancel_batch",
            "backfill", "pause_schedule", "resume_schedule", "remove_schedule"}  # fmt: skip
FUNCTIONS_OF = {
    "pgqueue_producer": _PRODUCE,
    "pgqueue_reader": _LOOK,
    "pgqueue_worker": _PRODUCE | _LOOK | _WORK,
    "pgqueue_admin": _PRODUCE | _LOOK | _WORK | _OPERATE,
    "pgqueue_test_nobody": set(),
}


@pytest.mark.parametrize("role", MAY)
def test_the_helpers_of_the_functions_are_nobodys(as_role: Callable[[str], psycopg.Connection[Any]], role: str):
    found = as_role(role).execute("""
        SELECT proname FROM pg_proc
        WHERE pronamespace = 'pgqueue'::regnamespace AND has_function_privilege(oid, 'EXECUTE')""")
    assert {name for (name,) in found} == FUNCTIONS_OF[role]


def test_no_public_function_takes_what_only_our_own_may_say(as_role: Callable[[str], psycopg.Connection[Any]]):
    """A batch that has not counted a job would be finished too soon; siblings would be neither locked nor checked."""
    producer = as_role("pgqueue_producer")
    (batch_id,) = producer.execute("SELECT pgqueue.create_batch()").fetchone() or (0,)
    for switch in (f"many => true, batch_id => {batch_id}", "siblings => ARRAY[1]"):
        with pytest.raises(errors.UndefinedFunction):
            producer.execute(f"SELECT pgqueue.submit('t', {switch})")


FORBIDDEN = {
    "pgqueue_producer": ["SELECT FROM pgqueue.jobs", "SELECT FROM pgqueue.all_jobs", "DELETE FROM pgqueue.jobs",
                         "SELECT nextval('pgqueue.jobs_id_seq')", "INSERT INTO pgqueue.jobs (task) VALUES ('t')",
                         "SELECT FROM pgqueue.tokens", "SELECT pgqueue.find_token('')"],
    "pgqueue_reader": ["DELETE FROM pgqueue.jobs", "UPDATE pgqueue.queues SET paused = true",
                       "INSERT INTO pgqueue.history SELECT", "SELECT nextval('pgqueue.jobs_id_seq')",
                       "SELECT FROM pgqueue.tokens", "SELECT pgqueue.find_token('')"],
    "pgqueue_worker": ["DELETE FROM pgqueue.history", "UPDATE pgqueue.history SET result = '1'",
                       "UPDATE pgqueue.retention SET keep = '0'", "DELETE FROM pgqueue.queues",
                       "UPDATE pgqueue.schedules SET paused = true", "DELETE FROM pgqueue.ticks",
                       "SELECT FROM pgqueue.tokens", "UPDATE pgqueue.tokens SET scopes = '{admin}'",
                       "INSERT INTO pgqueue.tokens (name) VALUES ('mine')", "DELETE FROM pgqueue.tokens",
                       "DROP TABLE pgqueue.jobs", "TRUNCATE pgqueue.jobs", "CREATE TABLE pgqueue.mine ()"],
    "pgqueue_admin": ["DROP TABLE pgqueue.jobs", "TRUNCATE pgqueue.jobs", "CREATE TABLE pgqueue.mine ()",
                      "UPDATE pgqueue.history SET result = '1'", "DELETE FROM pgqueue.retention"],
    "pgqueue_test_nobody": ["SELECT FROM pgqueue.jobs", "SELECT pgqueue.enqueue('t')",
                            "SELECT pgqueue.bell_key('q')", "SELECT FROM pgqueue.queue_stats"],
}  # fmt: skip


@pytest.mark.parametrize(("role", "statement"), [(r, s) for r, all_of in FORBIDDEN.items() for s in all_of])
def test_the_tables_are_closed_where_no_verb_needs_them(
    as_role: Callable[[str], psycopg.Connection[Any]], role: str, statement: str
):
    with pytest.raises((errors.InsufficientPrivilege, errors.SyntaxError)) as caught:
        as_role(role).execute(statement)
    assert isinstance(caught.value, errors.InsufficientPrivilege), statement


def test_who_checks_a_token_learns_of_it_and_notes_its_use_without_a_right_on_the_table(
    as_role: Callable[[str], psycopg.Connection[Any]],
):
    secret_hash = hash_secret(make_secret())
    admin = as_role("pgqueue_admin")
    run(admin, statements.create_token(TOKEN, secret_hash, schema=S))
    found = run(as_role("pgqueue_worker"), statements.find_token(secret_hash, schema=S))
    (listed,) = run(admin, statements.list_tokens(False, schema=S))
    assert found
    assert (found.name, found.last_used_at) == ("t", None)
    assert listed.last_used_at is not None


def test_no_function_and_no_table_is_for_public(dsn: str):
    with psycopg.connect(dsn) as connection:
        functions = connection.execute("""
            SELECT p.proname FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
            WHERE p.pronamespace = 'pgqueue'::regnamespace AND a.grantee = 0""").fetchall()
        tables = connection.execute("""
            SELECT c.relname FROM pg_class c, aclexplode(c.relacl) a
            WHERE c.relnamespace = 'pgqueue'::regnamespace AND a.grantee = 0""").fetchall()
    assert (functions, tables) == ([], [])


def test_every_definer_function_pins_its_search_path_with_pg_temp_last(dsn: str):
    with psycopg.connect(dsn) as connection:
        paths = connection.execute("""
            SELECT proname, (SELECT s FROM unnest(proconfig) s WHERE s LIKE 'search_path=%') FROM pg_proc
            WHERE pronamespace = 'pgqueue'::regnamespace AND prosecdef""").fetchall()
    assert len(paths) >= 9
    assert {path for _, path in paths} == {"search_path=pg_catalog, pg_temp"}


# -- shadowing -------------------------------------------------------------------------------------------------------

TRAP = """
    CREATE SCHEMA evil;
    CREATE TABLE evil.caught (who text);
    GRANT ALL ON SCHEMA evil TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA evil TO PUBLIC;
    GRANT TEMPORARY, CREATE ON DATABASE {database} TO PUBLIC;
"""
FUNCTIONS = """
    CREATE FUNCTION {schema}.{name} LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO evil.caught VALUES (current_user); RETURN {value}; END $$
"""
SHADOWS = [
    ("now() RETURNS timestamptz", "'2040-01-01'::timestamptz"),
    ("char_length(text) RETURNS integer", "7"),
    ("pg_column_size(jsonb) RETURNS integer", "7"),
    ("hashtextextended(text, integer) RETURNS bigint", "7"),
    ("pg_try_advisory_lock(bigint) RETURNS boolean", "false"),
    ("pg_notify(text, text) RETURNS integer", "7"),
    ("jsonb_typeof(jsonb) RETURNS text", "'array'"),
    ("format(text, text) RETURNS text", "'DROP TABLE pgqueue.jobs'"),
    ("to_regclass(text) RETURNS regclass", "NULL"),
]


@pytest.mark.parametrize("role", ["pgqueue_producer", "pgqueue_worker", "pgqueue_admin"])
def test_functions_tables_and_types_of_the_callers_own_are_inert(
    dsn: str, as_role: Callable[[str], psycopg.Connection[Any]], role: str
):
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(sql.SQL(TRAP).format(database=sql.Identifier(owner.info.dbname)))
    caller = as_role(role)
    for name, value in SHADOWS:
        caller.execute(FUNCTIONS.format(schema="evil", name=name, value=value))
        caller.execute(FUNCTIONS.format(schema="pg_temp", name=name, value=value))
    caller.execute("""
        CREATE TEMP TABLE jobs (LIKE pg_catalog.pg_class); CREATE TEMP TABLE history (id bigint);
        CREATE TEMP TABLE retention (state text, keep interval); CREATE TEMP TABLE pg_inherits (inhrelid oid);
        CREATE TEMP TABLE pg_class (oid oid); CREATE TYPE pg_temp.job_state AS ENUM ('mine');
        CREATE DOMAIN pg_temp.jsonb AS text; CREATE DOMAIN pg_temp.interval AS text;
        CREATE FUNCTION evil.lt(interval, interval) RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO evil.caught VALUES (current_user); RETURN false; END $$;
        CREATE OPERATOR evil.< (LEFTARG = interval, RIGHTARG = interval, FUNCTION = evil.lt);
        SET search_path = pg_temp, evil, pg_catalog""")
    job_id = caller.execute("SELECT pgqueue.enqueue('t', pg_catalog.jsonb '{}', delay => '0'::pg_catalog.interval)")
    ids = {job_id.fetchone()[0]}
    for name in ("enqueue_many", "enqueue_together"):
        ids |= {i for (i,) in caller.execute(f"""SELECT pgqueue.{name}('[{{"task": "t", "delay": "0"}}]')""")}
    if role == "pgqueue_worker":
        caller.execute("SELECT pgqueue.prune(1)")
    if role == "pgqueue_admin":
        for call in ("cancel(1)", "retry(1)", "redrive()", "purge('q')", "purge_dead()", "pause('q')", "resume('q')"):
            caller.execute(f"SELECT pgqueue.{call}")
    with psycopg.connect(dsn) as owner:
        assert owner.execute("SELECT who FROM evil.caught").fetchall() == []
        assert {i for (i,) in owner.execute("SELECT id FROM pgqueue.jobs WHERE run_at < now()")} == ids


@pytest.mark.parametrize("name", ["'; DROP TABLE pgqueue.jobs; --", '"', "$$", "\\", "%s %(x)s :y", "<b>&amp;"])
def test_a_hostile_name_is_only_a_name(dsn: str, name: str):
    with psycopg.connect(dsn, autocommit=True) as connection:
        spec = JobSpec.make(name, {name: name}, queue=name, unique_key=name, meta={name: name})
        job_id = run(connection, statements.enqueue(spec, schema=S))
        (again,) = run(connection, statements.enqueue_many([spec], schema=S))
        assert run(connection, statements.pause(name, schema=S)) is True
        record = run(connection, statements.get_job(job_id, schema=S))
        assert run(connection, statements.purge(name, schema=S)) == 1
    assert again == job_id
    assert record
    assert (record.task, record.queue, record.payload, record.meta) == (name, name, {name: name}, {name: name})
