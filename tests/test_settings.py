"""Settings: given by hand, else from the environment, else the default."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from pgqueue import Settings
from pgqueue.errors import SettingsError


def test_the_defaults_are_the_documented_ones():
    settings = Settings.load({})
    assert settings == Settings()
    assert (settings.schema, settings.slots, settings.log_format) == ("pgqueue", 50, "text")
    assert settings.lease_duration == settings.shutdown_timeout == timedelta(seconds=30)
    assert (settings.lease_check_interval, settings.poll_interval) == (timedelta(seconds=5), timedelta(seconds=1))
    assert settings.dsn is None


def test_the_environment_says_every_setting():
    environ = {
        "PGQUEUE_DSN": "host=a", "PGQUEUE_LISTEN_DSN": "host=b", "PGQUEUE_SCHEMA": "s", "PGQUEUE_LEASE_DURATION": "45s",
        "PGQUEUE_LEASE_CHECK_INTERVAL": "2", "PGQUEUE_POLL_INTERVAL": "500ms", "PGQUEUE_SLOTS": "7",
        "PGQUEUE_SHUTDOWN_TIMEOUT": "1m", "PGQUEUE_LOG_FORMAT": "json", "PGQUEUE_METRICS_PORT": "9100",
        "PGQUEUE_METRICS_HOST": "127.0.0.1",
    }  # fmt: skip
    assert Settings.load(environ) == Settings(
        "host=a", "host=b", "s", timedelta(seconds=45), timedelta(seconds=2), timedelta(milliseconds=500), 7,
        timedelta(minutes=1), "json", 9100, "127.0.0.1",
    )  # fmt: skip


def test_what_is_given_wins_over_our_variable_and_that_over_the_plain_one():
    environ = {"PGQUEUE_DSN": "host=ours", "DATABASE_URL": "host=plain", "SLOTS": "3", "PGQUEUE_SLOTS": "4"}
    assert Settings.load(environ, dsn="host=given", slots=5).dsn == "host=given"
    assert Settings.load(environ, dsn=None).dsn == "host=ours"
    assert Settings.load(environ).slots == 4
    del environ["PGQUEUE_DSN"], environ["PGQUEUE_SLOTS"]
    assert (Settings.load(environ).dsn, Settings.load(environ).slots) == ("host=plain", 3)


def test_an_empty_variable_says_nothing():
    assert Settings.load({"PGQUEUE_DSN": "", "DATABASE_URL": "host=plain", "PGQUEUE_SLOTS": ""}).dsn == "host=plain"


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+asyncpg", "postgres+psycopg2", "postgresql"])
def test_the_url_of_sqlalchemy_is_understood(driver: str):
    settings = Settings.load({"DATABASE_URL": f"{driver}://u:p%40@h:5433/d?sslmode=require"})
    assert settings.dsn == "postgresql://u:p%40@h:5433/d?sslmode=require"
    assert settings.resolve_dsn() == settings.dsn


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PGQUEUE_SLOTS", "many"), ("PGQUEUE_SLOTS", "0"), ("PGQUEUE_SLOTS", "10001"), ("PGQUEUE_SLOTS", "1.5"),
        ("PGQUEUE_LEASE_DURATION", "0.5s"), ("PGQUEUE_LEASE_CHECK_INTERVAL", "0"), ("PGQUEUE_POLL_INTERVAL", "1ms"),
        ("PGQUEUE_LEASE_DURATION", "soon"), ("PGQUEUE_SHUTDOWN_TIMEOUT", "-1"), ("PGQUEUE_LOG_FORMAT", "xml"),
        ("PGQUEUE_METRICS_PORT", "http"), ("PGQUEUE_METRICS_PORT", "-1"), ("PGQUEUE_METRICS_PORT", "65536"),
    ],
)  # fmt: skip
def test_a_value_without_meaning_names_the_setting(variable: str, value: str):
    with pytest.raises(SettingsError) as caught:
        Settings.load({variable: value})
    name = variable.removeprefix("PGQUEUE_").lower()
    assert name in str(caught.value).lower()


@pytest.mark.parametrize("schema", ["", "Upper", "a-b", "1a", "a" * 49, 'a"b', "a.b", "a;b", "ä", "a\n", "pg queue"])
def test_a_schema_is_a_plain_name_that_needs_no_quotes(schema: str):
    with pytest.raises(SettingsError, match="plain lower-case name"):
        Settings(schema=schema)


@pytest.mark.parametrize("schema", ["a", "_x", "a" * 48, "queue_2"])
def test_plain_names_are_schemas(schema: str):
    assert Settings(schema=schema).schema == schema


@pytest.mark.parametrize(
    "given", [{"lease_duration": 45}, {"lease_duration": "45s"}, {"lease_duration": timedelta(seconds=45)}]
)
def test_a_duration_is_given_as_people_like(given: dict[str, Any]):
    assert Settings.load({}, **given).lease_duration == timedelta(seconds=45)
