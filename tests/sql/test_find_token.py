"""Tokens in the database: who is let in, when the use is noted, and that no request waits for it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from peers import SCHEMA, Peer
from psycopg import errors
from test_plans import Explainer

from pgqueue import statements
from pgqueue.tokens import TokenSpec, hash_secret, make_secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueue import TokenRecord

HASH = hash_secret("pgq_" + "0" * 64)
AGO = "UPDATE pgqueue.tokens SET last_used_at = now() - %s::interval"


def create(
    peer: Peer, name: str = "ci", secret_hash: bytes = HASH, expires_in: timedelta | None = None
) -> TokenRecord | None:
    spec = TokenSpec.make(name, ["enqueue", "read"], ["mail*", "img"], expires_in)
    return peer.run(statements.create_token(spec, secret_hash, schema=SCHEMA))


def find(peer: Peer, secret_hash: bytes = HASH) -> TokenRecord | None:
    return peer.run(statements.find_token(secret_hash, schema=SCHEMA))


def revoke(peer: Peer, name: str = "ci") -> bool | None:
    return peer.run(statements.revoke_token(name, schema=SCHEMA))


def used(peer: Peer) -> Any:
    return peer.value("SELECT last_used_at FROM pgqueue.tokens")


# -- who is let in ---------------------------------------------------------------------------------------------------


def test_a_token_is_found_by_its_hash_and_by_no_other(one: Peer):
    made = create(one, expires_in=timedelta(days=1))
    assert made
    assert (made.name, made.scopes, made.queues) == ("ci", ("enqueue", "read"), ("mail*", "img"))
    assert find(one) == made
    assert find(one, hash_secret(make_secret())) is None
    assert find(one, HASH[:31]) is None
    assert find(one, b"") is None
    assert one.sql("SELECT count(*) FROM pgqueue.find_token(NULL)") == [(0,)]


def test_a_token_that_was_revoked_is_not_found(one: Peer):
    create(one)
    find(one)
    before = used(one)
    assert revoke(one) is True
    assert find(one) is None
    assert revoke(one) is None
    kept = one.sql("SELECT hash, last_used_at = %s, revoked_at <= now() FROM pgqueue.tokens", before)
    assert kept == [(None, True, True)]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_of_two_revocations_at_once_one_finds_a_token(one: Peer, two: Peer, ends: str):
    create(one)
    one.begin()
    assert revoke(one) is True
    second = two.behind(lambda: revoke(two))
    getattr(one, ends)()
    assert second.result(30) is (None if ends == "commit" else True)
    assert find(one) is None


def test_a_name_serves_again_and_again_and_each_time_only_the_last_secret(one: Peer):
    hashes = [hash_secret(make_secret()) for _ in range(3)]
    for secret_hash in hashes:
        create(one, secret_hash=secret_hash)
        revoke(one)
    create(one)
    assert [find(one, secret_hash) for secret_hash in hashes] == [None] * 3
    assert find(one)
    assert one.value("SELECT count(*) FROM pgqueue.tokens WHERE name = 'ci'") == 4


def test_a_token_counts_from_its_commit_on_and_until_its_row_is_deleted(one: Peer, two: Peer):
    def has_tokens() -> bool:
        return two.run(statements.has_tokens(schema=SCHEMA))

    one.begin()
    create(one)
    assert has_tokens() is False
    one.commit()
    assert has_tokens() is True
    one.sql("DELETE FROM pgqueue.tokens")
    assert has_tokens() is False


def test_a_token_is_found_until_it_expires_by_the_servers_clock(one: Peer):
    create(one, expires_in=timedelta(days=1))
    one.begin()
    for expires_at, found in (("now() + interval '1 us'", True), ("now()", False), ("now() - interval '1 us'", False)):
        one.sql(f"UPDATE pgqueue.tokens SET expires_at = {expires_at}")
        assert (find(one) is not None) is found
        (listed,) = one.run(statements.list_tokens(False, schema=SCHEMA))
        assert listed.expired is not found
    one.rollback()


def test_an_expired_token_leaves_no_trace_of_its_use(one: Peer):
    create(one)
    one.sql("UPDATE pgqueue.tokens SET expires_at = now()")
    assert find(one) is None
    assert used(one) is None


def test_a_token_that_does_not_expire_is_not_listed_as_expired(one: Peer):
    create(one)
    (listed,) = one.run(statements.list_tokens(False, schema=SCHEMA))
    assert (listed.expires_at, listed.expired) == (None, False)


def test_an_expired_token_keeps_its_name_until_it_is_revoked(one: Peer):
    create(one)
    one.sql("UPDATE pgqueue.tokens SET expires_at = now()")
    assert create(one, secret_hash=hash_secret(make_secret())) is None
    revoke(one)
    assert create(one, secret_hash=hash_secret(make_secret()))


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_of_two_tokens_with_one_name_the_second_waits_for_the_first(one: Peer, two: Peer, ends: str):
    one.begin()
    create(one)
    second = two.behind(lambda: create(two, secret_hash=hash_secret(make_secret())))
    getattr(one, ends)()
    assert (second.result(30) is None) is (ends == "commit")
    assert one.value("SELECT count(*) FROM pgqueue.tokens") == 1


def test_a_new_token_waits_for_the_revocation_of_the_one_whose_name_it_takes(one: Peer, two: Peer):
    create(one)
    one.begin()
    revoke(one)
    second = two.behind(lambda: create(two, secret_hash=hash_secret(make_secret())))
    one.commit()
    assert second.result(30)


# -- last_used_at ----------------------------------------------------------------------------------------------------


def test_the_first_use_is_noted_and_the_next_within_a_minute_write_nothing(one: Peer):
    create(one)
    assert used(one) is None
    find(one)
    first = used(one)
    assert first is not None
    one.begin()
    found = find(one)
    assert found
    assert found.last_used_at == first
    assert one.value("SELECT pg_current_xact_id_if_assigned()") is None, "a transaction that writes has an id"
    one.commit()


def test_a_use_is_noted_again_when_the_note_is_a_minute_old(one: Peer):
    create(one)
    one.begin()
    one.sql(AGO, "59.999 seconds")
    before = used(one)
    find(one)
    assert used(one) == before
    one.sql(AGO, "1 minute")
    find(one)
    assert used(one) == one.value("SELECT now()")
    one.commit()


def test_a_use_of_one_token_is_no_use_of_another(one: Peer):
    create(one)
    create(one, "other", hash_secret(make_secret()))
    find(one)
    assert one.sql("SELECT name FROM pgqueue.tokens WHERE last_used_at IS NOT NULL") == [("ci",)]


HOLDS: dict[str, Callable[[Peer], Any]] = {
    "another note": find,
    "a revocation": revoke,
    "an edit": lambda peer: peer.sql("UPDATE pgqueue.tokens SET queues = '{*}'"),
}


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_request_waits_for_nobody_and_leaves_the_note_to_who_holds_the_row(
    one: Peer, two: Peer, hold: str, ends: str
):
    create(one)
    one.begin()
    HOLDS[hold](one)
    asked = two.start(lambda: find(two))
    assert asked.done(), "it waits for a lock"
    found = asked.result()
    assert found
    assert found.queues == ("mail*", "img")
    getattr(one, ends)()
    noted = {("another note", "commit")}
    assert (used(one) is not None) is ((hold, ends) in noted)


def test_a_request_whose_snapshot_is_older_than_a_note_does_not_note_again(one: Peer, two: Peer):
    """It sees the row as it was, waits elsewhere, and comes to the lock when the other note is committed."""
    create(one)
    one.sql("""
        CREATE TABLE notes (at timestamptz DEFAULT clock_timestamp());
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.notes DEFAULT VALUES; RETURN NEW; END $$;
        CREATE TRIGGER note AFTER UPDATE ON pgqueue.tokens FOR EACH ROW EXECUTE FUNCTION note();
        CREATE FUNCTION slow() RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN true; END $$""")
    body = one.value("SELECT pg_get_functiondef('pgqueue.find_token'::regproc)")
    stale = "WHERE s.id = token.id AND "
    assert body.count(stale) == 1
    one.sql(body.replace(stale, stale + "public.slow() AND "))
    one.begin()
    one.sql("SELECT pg_advisory_xact_lock(4711)")
    late = two.behind(lambda: find(two))  # it has its snapshot
    one.sql("UPDATE pgqueue.tokens SET last_used_at = now()")
    one.commit()
    assert late.result(30)
    assert one.value("SELECT count(*) FROM notes") == 1


def test_of_many_requests_at_once_one_notes_the_use(one: Peer, connect: Callable[[], Peer]):
    create(one)
    one.sql("""
        CREATE TABLE notes (round integer);
        CREATE SEQUENCE round;
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.notes SELECT last_value FROM public.round; RETURN NEW; END $$""")
    peers, rounds = [connect() for _ in range(8)], 10
    barrier = threading.Barrier(len(peers))

    def ask(peer: Peer) -> list[TokenRecord | None]:
        barrier.wait(30)
        return [find(peer) for _ in range(5)]

    with ThreadPoolExecutor(len(peers)) as pool:
        for _ in range(rounds):
            one.sql(AGO, "1 hour")
            one.sql("CREATE TRIGGER note AFTER UPDATE ON pgqueue.tokens FOR EACH ROW EXECUTE FUNCTION note()")
            one.sql("SELECT nextval('round')")
            assert all(all(answers) for answers in pool.map(ask, peers))
            one.sql("DROP TRIGGER note ON pgqueue.tokens")
    assert one.sql("SELECT round, count(*) FROM notes GROUP BY 1 ORDER BY 1") == [(n + 1, 1) for n in range(rounds)]


# -- the table -------------------------------------------------------------------------------------------------------


def test_a_look_among_many_tokens_reads_a_few_pages(dsn: str):
    with Explainer(dsn) as explainer:
        explainer.sql("RESET ALL")  # who asks this is no worker, so nothing is pinned
        explainer.sql("""
            INSERT INTO pgqueue.tokens (name, hash, scopes)
            SELECT 't' || n, sha256(n::text::bytea), '{read}' FROM generate_series(1, 20000) n""")
        create(explainer)
        statement = statements.find_token(HASH, schema=SCHEMA)
        assert explainer.run(statement)
        call = explainer.prepare(statement)
        explainer.execute(call, statement)
        assert explainer.execute(call, statement).buffers <= 6


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("name", "''"),
        ("name", "repeat('x', 129)"),
        ("name", "NULL"),
        ("hash", "'\\x00'"),
        ("hash", "NULL"),
        ("revoked_at", "now()"),
        ("scopes", "'{}'"),
        ("scopes", "'{write}'"),
        ("scopes", "'{read, NULL}'"),
        ("scopes", "'{{read}}'"),
        ("scopes", "'{read, read, read, read, read}'"),
        ("queues", "'{}'"),
        ("queues", "'{a, NULL}'"),
        ("queues", """'{a, ""}'"""),
        ("queues", "array_fill('a'::text, ARRAY[101])"),
        ("expires_at", "'infinity'"),
        ("last_used_at", "'-infinity'"),
        ("hash, revoked_at", "NULL, 'infinity'"),
    ],
)
def test_a_row_that_has_no_meaning_is_refused(one: Peer, column: str, value: str):
    create(one)
    with pytest.raises((errors.CheckViolation, errors.NotNullViolation)):
        one.sql(f"UPDATE pgqueue.tokens SET ({column}) = ROW ({value})")


def test_two_tokens_never_share_a_hash(one: Peer):
    create(one)
    with pytest.raises(errors.UniqueViolation, match="tokens_hash"):
        create(one, "other")


def test_a_token_made_by_hand_is_as_good(one: Peer):
    one.sql("INSERT INTO pgqueue.tokens (name, hash, scopes) VALUES ('ci', %s, '{work}')", HASH)
    found = find(one)
    assert found
    assert (found.scopes, found.queues, found.allows("work", "any")) == (("work",), ("*",), True)


# -- what is forgotten -----------------------------------------------------------------------------------------------


def names(peer: Peer) -> set[str]:
    return {name for (name,) in peer.sql("SELECT name FROM pgqueue.tokens")}


def test_tokens_are_forgotten_30_days_after_they_were_revoked_or_have_expired(one: Peer):
    ages = {"revoked 31": 31, "revoked 29": 29, "expired 31": 31, "expired 29": 29, "both": 31, "lives": None}
    for name, days in ages.items():
        create(one, name, hash_secret(make_secret()), timedelta(days=1) if name != "lives" else None)
        if name.startswith(("revoked", "both")):
            revoke(one, name)
        if days is not None:
            column = "expires_at" if name.startswith("expired") else "revoked_at"
            ago = "now() - make_interval(days => %s)"
            one.sql(f"UPDATE pgqueue.tokens SET {column} = {ago} WHERE name = %s", days, name)
    one.sql("UPDATE pgqueue.tokens SET created_at = now() - interval '1 year'")
    one.run(statements.tidy(schema=SCHEMA))
    assert names(one) == {"revoked 29", "expired 29", "lives"}


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_the_newest_token_is_never_forgotten_so_that_the_door_stays_shut(one: Peer, how: str):
    for name in ("first", "last"):
        create(one, name, hash_secret(make_secret()))
        if how == "revoked":
            revoke(one, name)
    column = "revoked_at" if how == "revoked" else "expires_at"
    one.sql(f"UPDATE pgqueue.tokens SET {column} = now() - interval '1 year'")
    for _ in range(2):
        one.run(statements.tidy(schema=SCHEMA))
    assert names(one) == {"last"}
    assert one.run(statements.has_tokens(schema=SCHEMA)) is True
