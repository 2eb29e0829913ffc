from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest

from pgqueue.tokens import is_secret

DAY = timedelta(days=1)


def test_create_prints_the_secret_alone_on_stdout_and_the_rest_on_stderr(queue, pgq):
    answer = pgq("token", "create", "ci", "--scope", "work", "--scope", "enqueue", "--queue", "mail*", "-q", "img",
                 "--expires-in", "90d")  # fmt: skip
    assert answer.code == 0, answer.err
    secret = answer.out.removesuffix("\n")
    assert is_secret(secret)
    record = queue.find_token(secret)
    assert (record.name, record.scopes, record.queues) == ("ci", ("enqueue", "work"), ("mail*", "img"))
    assert record.expires_at - record.created_at == 90 * DAY
    assert answer.err.startswith(f"ci created: enqueue, work on mail*, img, expires {record.expires_at:%Y-%m-%d}")
    assert "it is not shown again" in answer.err
    assert secret not in answer.err


def test_create_without_more_is_for_every_queue_and_does_not_expire(queue, pgq):
    answer = pgq("token", "create", "ci", "--scope", "read")
    assert "ci created: read on *, does not expire" in answer.err
    (record,) = queue.tokens()
    assert (record.queues, record.expires_at) == (("*",), None)


def test_create_with_json_prints_the_record_and_the_secret(queue, pgq):
    answer = pgq("token", "create", "ci", "--scope", "admin", "--expires-in", "12h", "--json")
    facts = answer.json
    assert (facts["name"], facts["scopes"], facts["queues"]) == ("ci", ["admin"], ["*"])
    assert facts["expires_at"] is not None
    assert queue.find_token(facts["secret"]).name == "ci"
    assert answer.err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ci", "--scope", "write"], "scopes must be among enqueue, work, read, admin; not 'write'"),
        (["ci", "--scope", "enqueue,work"], "not 'enqueue,work'"),
        (["ci"], "--scope"),
        (["ci", "--scope", "read", "--queue", ""], "a glob of queues must have 1 to 128 characters"),
        (["ci", "--scope", "read", "--expires-in", "soon"], "expires_in 'soon' is not a duration"),
        (["ci", "--scope", "read", "--expires-in", "0"], "expires_in must be positive"),
        (["x" * 129, "--scope", "read"], "a token's name must have 1 to 128 characters"),
    ],
)
def test_what_has_no_meaning_is_wrong_usage_and_asks_no_server(pgq, monkeypatch, words, said):
    monkeypatch.setenv("PGQUEUE_DSN", "host=127.0.0.1 port=1")
    answer = pgq("token", "create", *words)
    assert answer.code == 2
    assert said in answer.error
    assert answer.out == ""


def test_a_name_that_is_taken_is_refused_and_prints_no_secret(queue, pgq):
    queue.create_token("ci", ["read"])
    answer = pgq("token", "create", "ci", "--scope", "admin")
    assert answer.code == 1
    assert "a token 'ci' already; revoke it" in answer.error
    assert answer.out == ""


def test_list_shows_every_token_and_no_secret(queue, pgq, dsn):
    assert pgq("token", "list").out == "no tokens\n"
    secrets = [
        queue.create_token("used", ["enqueue", "work"], ["mail*", "img"])[1],
        queue.create_token("fresh", ["read"], expires_in="90d")[1],
        queue.create_token("old", ["admin"], expires_in="1d")[1],
    ]
    queue.find_token(secrets[0])
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("UPDATE pgqueue.tokens SET expires_at = now() WHERE name = 'old'")
    answer = pgq("token", "list")
    lines = {line.split()[0]: line for line in answer.out.splitlines()}
    assert list(lines) == ["name", "fresh", "old", "used"]
    assert "enqueue, work" in lines["used"]
    assert "mail*, img" in lines["used"]
    assert lines["used"].count("s ago") == 2
    assert lines["used"].endswith("  valid")
    assert lines["fresh"].count("s ago") == 1
    assert f"  valid until {queue.tokens()[0].expires_at:%Y-%m-%d}" in lines["fresh"]
    assert lines["old"].endswith("  expired")
    as_json = pgq("token", "list", "--json")
    assert [(one["name"], one["expired"]) for one in as_json.json] == [("fresh", False), ("old", True), ("used", False)]
    assert as_json.json[2]["last_used_at"] is not None
    for secret in secrets:
        assert secret not in answer.out + as_json.out


def test_a_hostile_name_does_not_steer_the_terminal(queue, pgq):
    name = "\x1b[2J\a\nci"
    created = pgq("token", "create", name, "--scope", "read")
    assert created.code == 0
    for text, lines in (
        (created.err, 1), (pgq("token", "list").out, 2), (pgq("token", "revoke", name).out, 1),
    ):  # fmt: skip
        assert not {"\x1b", "\a"} & set(text)
        assert len(text.splitlines()) == lines
        assert " ci " in text


def test_revoke(queue, pgq):
    _, secret = queue.create_token("ci", ["read"])
    assert pgq("token", "revoke", "ci").out == "ci revoked\n"
    assert queue.find_token(secret) is None
    assert pgq("token", "list").out == "no tokens\n"
    (_, line) = pgq("token", "list", "--revoked").out.splitlines()
    assert line.startswith("ci ")
    assert "  revoked " in line
    assert pgq("token", "list", "--json").json == []
    assert pgq("token", "list", "--revoked", "--json").json[0]["revoked_at"] is not None
    queue.create_token("ci", ["read"])
    assert pgq("token", "revoke", "ci", "--json").json == {"token": "ci", "revoked": True}
    assert queue.tokens() == []


def test_a_token_that_is_not_there_is_exit_1_and_one_line(queue, pgq):
    answer = pgq("token", "revoke", "ghost")
    assert answer.code == 1
    assert answer.error == "no token 'ghost'; see: pgq token list"


def test_a_role_that_may_not_create_tokens_is_told_so(queue, pgq, dsn, monkeypatch):
    monkeypatch.setenv("PGQUEUE_DSN", f"{dsn}&options=-c%20role%3Dpgqueue_worker")
    answer = pgq("token", "create", "ci", "--scope", "admin")
    assert answer.code == 1
    assert "permission denied for table tokens" in answer.error
    assert answer.out == ""


def test_the_help_of_create_tells_what_its_options_mean(pgq):
    out = pgq("token", "create", "--help").out
    for words in ("enqueue, work, read", "Default: '*'", "-q, --queue GLOB", "TOKEN=$(pgq token create"):
        assert words in " ".join(out.split())
    assert "Default: [" not in out
    assert "Default: ()" not in out
