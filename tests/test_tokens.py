"""A token as a value: its secret and hash, what is refused, and what it allows."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pgqueue import InvalidJobError, TokenRecord
from pgqueue.tokens import MOST_GLOBS, SCOPES, TokenSpec, hash_secret, is_secret, make_secret

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def token(*scopes: str, queues: tuple[str, ...] = ("*",), **facts: object) -> TokenRecord:
    return TokenRecord(7, "ci", scopes, queues, NOON, **facts)


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_a_secret_has_256_bits_and_can_be_recognised():
    made = {make_secret() for _ in range(100)}
    assert len(made) == 100
    for secret in made:
        assert is_secret(secret)
        assert len(bytes.fromhex(secret.removeprefix("pgq_"))) == 32
    for place in zip(*(secret.removeprefix("pgq_") for secret in made), strict=True):
        assert len(set(place)) > 8, "a digit that hardly ever changes is not random"


@pytest.mark.parametrize(
    "text",
    ["", "pgq_", "pgq_" + "0" * 63, "pgq_" + "0" * 65, "pgq_" + "A" * 64, "x" + "pgq_" + "0" * 64,
     "pgq_" + "0" * 64 + "\n", "pgq_" + "٣" * 64, "0" * 68, None, 7, b"pgq_" + b"0" * 64],
)  # fmt: skip
def test_what_is_no_secret_is_told_by_its_looks(text):
    assert not is_secret(text)


def test_the_hash_is_sha_256_of_the_whole_secret():
    secret = "pgq_" + "0" * 64
    assert hash_secret(secret) == hashlib.sha256(secret.encode()).digest()
    assert hash_secret(secret) != hash_secret("pgq_" + "0" * 63 + "1")


# -- what is refused -------------------------------------------------------------------------------------------------


def test_what_is_said_twice_counts_once_and_scopes_have_one_order():
    spec = TokenSpec.make("ci", ["work", "enqueue", "work"], ["b", "a", "b"], "1h30m")
    assert (spec.scopes, spec.queues) == (("enqueue", "work"), ("b", "a"))
    assert spec.expires_in == timedelta(minutes=90)
    assert TokenSpec.make("ci", iter(["read"])) == TokenSpec("ci", ("read",), ("*",), None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", ["read"]), "a token's name must have 1 to 128"),
        (("x" * 129, ["read"]), "a token's name must have 1 to 128"),
        (("a\0", ["read"]), "NUL"),
        ((None, ["read"]), "a token's name must be text"),
        (("ci", []), "at least one of the scopes enqueue, work, read, admin"),
        (("ci", ["write"]), "among enqueue, work, read, admin; not 'write'"),
        (("ci", ["READ"]), "not 'READ'"),
        (("ci", [None]), "not None"),
        (("ci", "read"), "scopes must be a list of texts, not 'read'"),
        (("ci", ["read"], "mail"), "queues must be a list of texts, not 'mail'"),
        (("ci", ["read"], []), "1 to 100 globs, not 0"),
        (("ci", ["read"], [str(n) for n in range(MOST_GLOBS + 1)]), "1 to 100 globs, not 101"),
        (("ci", ["read"], [""]), "a glob of queues must have 1 to 128"),
        (("ci", ["read"], ["x" * 129]), "a glob of queues must have 1 to 128"),
        (("ci", ["read"], [7]), "a glob of queues must be text"),
        (("ci", ["read"], ["*"], 0), "expires_in must be positive"),
        (("ci", ["read"], ["*"], "-1d"), "expires_in '-1d' is not a duration"),
        (("ci", ["read"], ["*"], "soon"), "expires_in 'soon' is not a duration"),
        (("ci", ["read"], ["*"], timedelta(days=-1)), "0 to 100 years"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, said):
    with pytest.raises(InvalidJobError, match=said):
        TokenSpec.make(*arguments)


# -- what it allows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", SCOPES)
@pytest.mark.parametrize("asked", SCOPES)
def test_a_scope_is_for_itself_and_admin_for_all(held, asked):
    allowed = held in {asked, "admin"}
    assert token(held).allows(asked) is allowed
    assert token(held).allows(asked, "any") is allowed


def test_several_scopes_add_up():
    assert [token("enqueue", "read").allows(scope) for scope in SCOPES] == [True, False, True, False]


@pytest.mark.parametrize("scope", ["", "write", "READ", None])
def test_a_scope_that_there_is_not_is_a_mistake_even_for_an_admin(scope):
    with pytest.raises(ValueError, match="is no scope; there are enqueue, work, read, admin"):
        token("admin").allows(scope)


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("*", ["", "a", "a.b", "line\nbreak", "ünï"], []),
        ("mail", ["mail"], ["Mail", "mail ", "mails", "amail", ""]),
        ("mail*", ["mail", "mail-bulk", "mail\n"], ["Mail", "xmail"]),
        ("*mail", ["mail", "bulk-mail"], ["mails"]),
        ("m?il", ["mail", "m?il", "mäil"], ["mil", "maail"]),
        ("a*b*c", ["abc", "a--b--c", "abbc"], ["ab", "acb"]),
        ("[ab]", ["[ab]"], ["a", "b"]),
        ("[!a]*", ["[!a]", "[!a]x"], ["b", "[a]"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a\\*", ["a\\", "a\\b"], ["a*"]),
        ("(a|b)+$", ["(a|b)+$"], ["a", "ab"]),
    ],
)
def test_a_glob_knows_the_star_and_the_question_mark_and_nothing_else(glob, yes, no):
    held = token("read", queues=(glob,))
    assert [queue for queue in yes if not held.allows("read", queue)] == []
    assert [queue for queue in no if held.allows("read", queue)] == []


def test_one_glob_of_several_is_enough_and_none_is_not():
    held = token("read", queues=("mail*", "img"))
    assert [held.allows("read", queue) for queue in ("mail", "img", "imgs")] == [True, True, False]


def test_without_a_queue_the_scope_alone_decides():
    held = token("read", queues=("mail",))
    assert held.allows("read")
    assert not held.allows("work")


def test_an_admin_is_one_only_in_the_queues_of_its_globs():
    held = token("admin", queues=("mail",))
    assert held.allows("enqueue", "mail")
    assert not held.allows("enqueue", "img")


def test_a_hostile_glob_costs_no_time():
    """A naive translation to a regular expression would look at it for longer than the universe has been there."""
    assert not token("read", queues=("*a" * 60 + "*b",)).allows("read", "a" * 128)


def test_an_expired_token_allows_nothing():
    held = token("admin", expires_at=NOON, expired=True)
    assert not any(held.allows(scope) for scope in SCOPES)


def test_a_revoked_token_allows_nothing():
    held = token("admin", revoked_at=NOON)
    assert not any(held.allows(scope) for scope in SCOPES)


def test_a_record_as_json_holds_its_times_as_text():
    held = token("read", queues=("a", "b"), expires_at=NOON)
    assert json.loads(json.dumps(held.as_dict())) == {
        "id": 7, "name": "ci", "scopes": ["read"], "queues": ["a", "b"], "created_at": "2026-05-01T12:00:00+00:00",
        "expires_at": "2026-05-01T12:00:00+00:00", "last_used_at": None, "revoked_at": None, "expired": False,
    }  # fmt: skip


def test_the_times_of_a_record_are_in_utc_whatever_the_session_says():
    there = NOON.astimezone(timezone(timedelta(hours=9)))
    record = TokenRecord.from_row((7, "ci", ["read"], ["*"], there, there, there, there, False))
    times = [record.created_at, record.expires_at, record.last_used_at, record.revoked_at]
    assert times == [NOON] * 4
    assert {time.tzinfo for time in times} == {UTC}
