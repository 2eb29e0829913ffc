"""Migrations: up, down, up again; two at once; under a lock; as a script; and what they build, compared with a dump.

The dump `tests/schema.sql` is made from the catalog, so that it is the same on every PostgreSQL from 15 on and needs
no pg_dump. After a new migration, write it again with `PGQUEUE_WRITE_SCHEMA=1 pytest tests/test_schema.py`,
look at the difference, and commit it together with the migration.
"""

from __future__ import annotations

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import pgqueue
from pgqueue import statements
from pgqueue.connection import run
from pgqueue.errors import DatabaseUnreachableError, SchemaError
from pgqueue.job import JobSpec
from pgqueue.migrations import migrate, migration_sql
from pgqueue.revision import check_schema, current_revision, head_revision, require_head, scripts

if TYPE_CHECKING:
    from collections.abc import Iterator

DUMP = Path(__file__).with_name("schema.sql")
WRITE = "PGQUEUE_WRITE_SCHEMA" in os.environ  # read before the fixtures clean the environment

RELATIONS = """
    SELECT c.oid, c.relname, c.relkind::text, coalesce(c.reloptions, '{}'), pg_get_partkeydef(c.oid),
        pg_get_expr(c.relpartbound, c.oid), i.inhparent::regclass::text, c.relacl::text[], pg_get_viewdef(c.oid),
        pg_get_userbyid(c.relowner)
    FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S') AND c.relname !~ '_[0-9]{8}$'
    ORDER BY c.relkind = 'v', c.relname
"""
COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text,
        pg_get_expr(d.adbin, d.adrelid)
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""
CONSTRAINTS = """
    SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE conrelid = %s AND contype <> 'n' AND conname !~ '^strict_' ORDER BY conname
"""
INDEXES = "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s ORDER BY indexrelid::regclass::text"
FUNCTIONS = """
    SELECT pg_get_functiondef(oid), oid::regprocedure::text, proacl::text[], pg_get_userbyid(proowner) FROM pg_proc
    WHERE pronamespace = %s::regnamespace ORDER BY oid::regprocedure::text
"""
ENUMS = """
    SELECT t.typname, string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
    FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid WHERE t.typnamespace = %s::regnamespace GROUP BY t.typname
"""
DOMAINS = """
    SELECT t.typname, format_type(t.typbasetype, t.typtypmod), c.conname, pg_get_constraintdef(c.oid)
    FROM pg_type t JOIN pg_constraint c ON c.contypid = t.oid WHERE t.typnamespace = %s::regnamespace ORDER BY t.typname
"""
SCHEMA_GRANTS = "SELECT nspacl::text[], pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = %s"


def dump(dsn: str, schema: str = "pgqueue") -> str:
    """Everything the migrations make, except the dated partitions, in a fixed order."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET search_path = pg_catalog")
        connection.execute("SET quote_all_identifiers = off")
        return "\n".join(_lines(connection, schema)) + "\n"


def _lines(connection: psycopg.Connection[Any], schema: str) -> Iterator[str]:
    yield "-- Made from the catalog by tests/test_schema.py, which says how to write it again. Not a script to run."
    for acl, owner in connection.execute(SCHEMA_GRANTS, [schema]):
        yield f"\nCREATE SCHEMA {schema};"
        yield from _grants(acl, owner)
    for name, labels in connection.execute(ENUMS, [schema]):
        yield f"\nCREATE TYPE {schema}.{name} AS ENUM ({labels});"
    for name, base, constraint, definition in connection.execute(DOMAINS, [schema]):
        yield f"\nCREATE DOMAIN {schema}.{name} AS {base} CONSTRAINT {constraint} {definition};"
    for relation in connection.execute(RELATIONS, [schema]).fetchall():
        yield ""
        yield from _relation(connection, schema, *relation)
    for definition, signature, acl, owner in connection.execute(FUNCTIONS, [schema]):
        yield f"\n{definition.rstrip()};\n-- {signature}"
        yield from _grants(acl, owner)
    rows = connection.execute(f"SELECT state::text, keep::text FROM {schema}.retention ORDER BY state").fetchall()
    yield f"\n-- rows of {schema}.retention: {rows}"


def _relation(
    connection: psycopg.Connection[Any], schema: str, oid: int, name: str, kind: str, options: list[str],
    key: str | None, bound: str | None, parent: str | None, acl: list[str] | None, view: str | None, owner: str,
) -> Iterator[str]:  # fmt: skip
    yield f"{ {'r': 'TABLE', 'p': 'TABLE', 'v': 'VIEW', 'S': 'SEQUENCE'}[kind] } {schema}.{name}"
    if parent:
        yield f"    PARTITION OF {parent} {bound}"
    if key:
        yield f"    PARTITION BY {key}"
    if options:
        yield f"    WITH ({', '.join(sorted(options))})"
    if kind != "S":
        for column, kind_of, required, identity, default in connection.execute(COLUMNS, [oid]):
            facts = [kind_of, "NOT NULL" * required, identity and "IDENTITY", f"DEFAULT {default}" if default else ""]
            yield f"    {column} {' '.join(fact for fact in facts if fact)}"
    if view:
        yield "    AS " + re.sub(rf"\b(?!{schema}\b)\w+\.(?=\w)", "", " ".join(view.split()))  # 15 qualifies more
    for constraint, definition in connection.execute(CONSTRAINTS, [oid]):
        yield f"    CONSTRAINT {constraint} {definition}"
    for (definition,) in connection.execute(INDEXES, [oid]):
        yield f"    {definition}"
    yield from _grants(acl, owner)


def _grants(acl: list[str] | None, owner: str) -> Iterator[str]:
    """Who else may do what; `m` (MAINTAIN) came with PostgreSQL 17 and only the owner has it."""
    for entry in sorted(acl or ["the default"]):
        grantee, _, rights = entry.partition("=")
        if grantee != owner:
            yield f"    GRANT {rights.partition('/')[0] or entry} TO {grantee or 'PUBLIC'}"


def test_the_schema_is_the_one_in_the_dump(dsn: str):
    found = dump(dsn)
    if WRITE:
        DUMP.write_text(found, encoding="utf-8")
    assert found.splitlines() == DUMP.read_text(encoding="utf-8").splitlines()


def test_up_down_up_builds_the_same_schema_and_leaves_nothing_between(empty_dsn: str):
    migrate(empty_dsn)
    before = dump(empty_dsn)
    migrate(empty_dsn, to="base")
    assert current_revision(empty_dsn) is None
    with psycopg.connect(empty_dsn) as connection:
        left = connection.execute("""
            SELECT relname FROM pg_class WHERE relnamespace = 'pgqueue'::regnamespace
            UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'pgqueue'::regnamespace
            UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'pgqueue'::regnamespace AND typtype = 'e'""")
        assert {name for (name,) in left} <= {"alembic_version", "alembic_version_pkc"}
    migrate(empty_dsn)
    assert dump(empty_dsn) == before
    check_schema(empty_dsn)


def test_one_step_down_is_a_downgrade_and_a_revision_is_a_place_to_go_to(empty_dsn: str):
    migrate(empty_dsn, to="0001")
    assert current_revision(empty_dsn) == "0001"
    migrate(empty_dsn, to="-1")
    assert current_revision(empty_dsn) is None
    migrate(empty_dsn, to="+1")
    assert current_revision(empty_dsn) == "0001"


def test_migrating_twice_changes_nothing(dsn: str):
    before = dump(dsn)
    migrate(dsn)
    assert dump(dsn) == before


def test_the_public_migrate_is_the_function_however_often_it_is_asked_for(dsn: str):
    pgqueue.migrate(dsn)
    pgqueue.migrate(dsn)
    check_schema(dsn)


def test_a_downgrade_with_jobs_in_the_tables_works(dsn: str):
    with psycopg.connect(dsn) as connection:
        run(connection, statements.enqueue(JobSpec.make("t"), schema="pgqueue"))
    migrate(dsn, to="base")
    migrate(dsn)
    check_schema(dsn)


def test_four_migrations_at_once_make_one_schema(empty_dsn: str, dsn: str):
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(migrate, empty_dsn) for _ in range(4)]:
            done.result(60)
    assert dump(empty_dsn) == dump(dsn)


def test_the_script_builds_the_same_schema(empty_dsn: str, dsn: str):
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(migration_sql())
    assert dump(empty_dsn) == dump(dsn)
    check_schema(empty_dsn)


def test_another_schema_gets_the_same_under_its_own_name(empty_dsn: str, dsn: str):
    migrate(empty_dsn, schema="other")
    expected = re.sub(r"\bpgqueue\b(?=[.; ])", "other", dump(dsn))
    assert _neutral(dump(empty_dsn, "other")) == _neutral(expected)
    check_schema(empty_dsn, schema="other")
    with pytest.raises(SchemaError, match="no schema 'pgqueue'"):
        check_schema(empty_dsn)


def _neutral(text: str) -> list[str]:
    """Without the words of comments, where only the prefix `pgqueue.` is the schema's name."""
    return [re.sub(r"--.*", "", line) for line in text.splitlines()]


def test_two_queues_in_one_database_know_nothing_of_each_other(dsn: str):
    migrate(dsn, schema="other")
    with psycopg.connect(dsn, autocommit=True) as connection:
        there = run(connection, statements.enqueue(JobSpec.make("t", unique_key="k"), schema="other"))
        here = run(connection, statements.enqueue(JobSpec.make("t", unique_key="k"), schema="pgqueue"))
        assert (here, there) == (1, 1)
        assert run(connection, statements.cancel(here, schema="pgqueue")) == "cancelled"
        record = run(connection, statements.get_job(there, schema="other"))
        assert record
        assert record.state == "available"
    migrate(dsn, schema="other", to="base")
    check_schema(dsn)


def test_the_script_for_another_schema_names_it(empty_dsn: str):
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(migration_sql("other"))
    check_schema(empty_dsn, schema="other")


# -- a lock that somebody else holds ---------------------------------------------------------------------------------


def test_a_migration_waits_for_a_lock_in_steps_so_that_nobody_stalls(dsn: str):
    """A session sits idle in a transaction that has read pgqueue.jobs; a downgrade wants to drop it."""
    stalls: list[float] = []
    stop = threading.Event()

    def traffic() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not stop.is_set():
                begin = time.monotonic()
                connection.execute("SELECT pgqueue.enqueue('t')")
                stalls.append(time.monotonic() - begin)
                stop.wait(0.02)

    with psycopg.connect(dsn) as idle, psycopg.connect(dsn, autocommit=True) as observer, ThreadPoolExecutor(2) as pool:
        idle.execute("SELECT count(*) FROM pgqueue.jobs")
        migration = pool.submit(migrate, dsn, to="base")
        _until(observer, "SELECT count(*) > 0 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted")
        producer = pool.submit(traffic)
        _until(observer, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND mode = 'RowExclusiveLock'")
        _until(observer, "SELECT count(*) = 0 FROM pg_locks WHERE NOT granted")  # the step ended, traffic goes on
        _until(observer, "SELECT count(*) > 0 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted")
        assert not migration.done()
        assert current_revision(dsn) == head_revision()
        stop.set()
        producer.result(20)
        assert max(stalls) < 15, "lock_timeout is one second; the rest is for a slow machine"
        idle.rollback()
        migration.result(20)
    assert current_revision(dsn) is None


def _until(observer: psycopg.Connection[Any], question: str) -> None:
    deadline = time.monotonic() + 60
    while not observer.execute(question).fetchone()[0]:
        assert time.monotonic() < deadline, question
        time.sleep(0.01)


def test_a_lock_that_is_never_to_be_had_is_a_typed_error(dsn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pgqueue.migrations._LOCK_PATIENCE", 0.1)
    monkeypatch.setattr("pgqueue.migrations._LOCK_TIMEOUT", "50ms")
    with psycopg.connect(dsn) as idle:
        idle.execute("SELECT count(*) FROM pgqueue.jobs")
        with pytest.raises(SchemaError, match=r"could not lock a table .* pg_locks"):
            migrate(dsn, to="base")
    check_schema(dsn)


def test_a_migration_that_never_ends_is_a_typed_error_for_the_next(dsn: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pgqueue.migrations._LOCK_PATIENCE", 0.1)
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute(f"SELECT pg_advisory_lock({0x70677175657565})")
        with pytest.raises(SchemaError, match="another migration has been running"):
            migrate(dsn)


# -- messages --------------------------------------------------------------------------------------------------------


def test_a_missing_schema_says_what_to_run(empty_dsn: str):
    with pytest.raises(SchemaError, match=r"no schema 'pgqueue' of pgqueue; run: pgq migrate"):
        check_schema(empty_dsn)


def test_an_older_and_a_newer_schema_say_what_to_do(dsn: str):
    with pytest.raises(SchemaError, match=rf"is at 0000, this pgqueue needs {head_revision()}; run: pgq migrate"):
        require_head("0000", "pgqueue")
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE pgqueue.alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match=r"is at 9999, newer than this pgqueue \(\d+\); upgrade the package"):
        check_schema(dsn)


@pytest.mark.parametrize("to", ["9999", "nonsense", "", "-7", "+7"])
def test_an_unknown_revision_is_a_typed_error_and_changes_nothing(dsn: str, to: str):
    with pytest.raises(SchemaError):
        migrate(dsn, to=to)
    check_schema(dsn)


def test_a_newer_schema_is_a_typed_error_for_migrate(dsn: str):
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE pgqueue.alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError):
        migrate(dsn)


def test_a_server_that_is_not_there_is_a_typed_error():
    for action in (migrate, check_schema, current_revision):
        with pytest.raises(DatabaseUnreachableError, match="can't be reached"):
            action("host=127.0.0.1 port=1 connect_timeout=2")


def test_a_role_that_may_create_nothing_gets_a_clear_error(empty_dsn: str):
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("DO $$ BEGIN CREATE ROLE pgqueue_test_nobody; EXCEPTION WHEN duplicate_object THEN END $$")
    with pytest.raises(Exception, match="permission denied") as caught:
        migrate(empty_dsn + "&options=-c%20role%3Dpgqueue_test_nobody")
    assert "pgqueue" in type(caught.value).__module__, "not SQLAlchemy's"


def test_the_revision_that_is_needed_is_alembics_head():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(scripts()))
    config.set_main_option("path_separator", "os")
    assert head_revision() == ScriptDirectory.from_config(config).get_current_head()
