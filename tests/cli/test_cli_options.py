from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import typer
from typer.main import get_command

from pgqueue import JobSpec, Settings
from pgqueue.cli import app, main
from pgqueue.cli.errors import rendered
from pgqueue.cli.options import Context
from pgqueue.cli.text import one_line, show

if TYPE_CHECKING:
    from collections.abc import Iterator

NOWHERE = "postgresql://postgres@127.0.0.1:1/nowhere"


def commands(command: Any = None, path: str = "pgq") -> Iterator[tuple[str, Any]]:
    command = command or get_command(app)
    yield path, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, f"{path} {name}")


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_and_option_explains_itself_in_whole_sentences(path, command):
    assert (command.help or "").strip().endswith("."), path
    for option in command.params:
        assert (option.help or "").endswith("."), f"{path} {option.name}"


@pytest.mark.parametrize("path", [path for path, _ in commands()])
def test_help_is_printed_for_every_command(path, pgq):
    answer = pgq(*path.split()[1:], "--help")
    assert answer.code == 0
    assert "Usage: pgq" in answer.out


def test_the_version_is_printed(pgq):
    assert pgq("--version").out == f"pgqueue {version('pgqueue')}\n"


def test_without_a_command_the_help_is_shown_and_it_is_wrong_usage(pgq):
    answer = pgq()
    assert answer.code == 2
    assert "Usage: pgq" in answer.out + answer.err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["enqueue", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["job", "show"], "ID"),
        (["job", "show", "x"], "ID"),
        (["job", "show", "0"], "ID"),
        (["job", "show", "9223372036854775808"], "ID"),
        (["enqueue", "--count", "0"], "--count"),
        (["enqueue", "--count", "many"], "--count"),
        (["worker", "--processes", "0"], "--processes"),
        (["job", "list", "--limit", "1001"], "--limit"),
    ],
)
def test_wrong_usage_is_one_line_that_names_what_is_wrong_and_the_help(argv, named, pgq):
    answer = pgq(*argv)
    assert answer.code == 2
    assert named in answer.error
    assert "--help" in answer.error


@pytest.mark.parametrize(
    "words",
    [
        ["--dsn", "{dsn}", "--json", "stats"],
        ["stats", "--dsn", "{dsn}", "--json"],
        ["--json", "stats", "--dsn", "{dsn}"],
        ["--dsn", NOWHERE, "stats", "--json", "--dsn", "{dsn}"],
    ],
)
def test_shared_options_are_taken_before_and_after_the_command(words, dsn, pgq):
    assert pgq(*(word.format(dsn=dsn) for word in words)).json["queues"] == []


def test_shared_options_are_taken_between_a_group_and_its_command(dsn, pgq):
    assert pgq("queue", "--dsn", dsn, "--json", "list").json == []


@pytest.mark.parametrize("argv", [["stats"], ["enqueue"], ["migrate"], ["migrate", "--check"], ["job", "list"]])
def test_an_unreachable_database_is_exit_3_and_one_line(argv, pgq):
    answer = pgq(*argv, "--dsn", NOWHERE)
    assert answer.code == 3
    assert "can't be reached" in answer.error
    assert "PGQUEUE_DSN" in answer.error


def test_what_is_no_dsn_is_wrong_usage(pgq):
    answer = pgq("stats", "--dsn", "nonsense")
    assert answer.code == 2
    assert "not a PostgreSQL connection string" in answer.error


def test_a_schema_name_that_is_none_is_wrong_usage(dsn, pgq):
    answer = pgq("stats", "--dsn", dsn, "--schema", "Robert'); --")
    assert answer.code == 2
    assert "schema" in answer.error


@pytest.mark.parametrize(
    "argv", [["stats"], ["enqueue"], ["worker"], ["worker", "--processes", "2"], ["job", "show", "1"], ["workers"]]
)
def test_a_missing_schema_on_a_given_server_is_exit_4_and_names_the_command(argv, empty_dsn, pgq):
    answer = pgq(*argv, "--dsn", empty_dsn)
    assert answer.code == 4
    assert answer.err.rstrip().endswith("run: pgq migrate")
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT to_regnamespace('pgqueue')").fetchone() == (None,)


@pytest.mark.parametrize(("revision", "remedy"), [("0000", "run: pgq migrate"), ("9999", "upgrade the package")])
def test_a_schema_of_another_version_is_exit_4(revision, remedy, dsn, pgq):
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE pgqueue.alembic_version SET version_num = %s", [revision])
    answer = pgq("stats", "--dsn", dsn)
    assert answer.code == 4
    assert remedy in answer.error


def test_a_role_that_may_only_enqueue_can_enqueue(dsn, pgq):
    answer = pgq("enqueue", "--dsn", f"{dsn}{'&' if '?' in dsn else '?'}options=-c%20role%3Dpgqueue_producer")
    assert answer.code == 0, answer.err


def test_debug_shows_the_traceback_before_the_line(dsn, pgq):
    answer = pgq("job", "show", 1, "--dsn", dsn, "--debug")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert answer.err.splitlines()[-1].startswith("error: no job 1")


def test_an_unforeseen_error_is_one_line_and_exit_1(capsys):
    with pytest.raises(typer.Exit) as ending, rendered(debug=False):
        raise ZeroDivisionError("so\nit \x1b[31mis")
    assert ending.value.exit_code == 1
    assert capsys.readouterr().err == "error: ZeroDivisionError: so it \\x1b[31mis; --debug shows the traceback\n"


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch, pgq):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Context, "client", interrupted)
    answer = pgq("stats")
    assert answer.code == 130
    assert answer.err == ""


def test_a_closed_pipe_is_no_traceback(queue):
    queue.enqueue_many([JobSpec.make("t")] * 1000)
    process = subprocess.run(
        f"{sys.executable} -m pgqueue job list --limit 1000 | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stderr == ""
    assert len(process.stdout.splitlines()) == 1


def test_the_flag_wins_over_the_environment_and_that_over_the_app(monkeypatch):
    base = Settings(dsn="dbname=app", schema="app", slots=7, lease_duration=timedelta(seconds=9))
    monkeypatch.setenv("PGQUEUE_SCHEMA", "pgqueue")
    monkeypatch.setenv("DATABASE_URL", "dbname=environment")
    settings = Context(dsn="dbname=flag").settings_over(base, slots=None)
    assert (settings.dsn, settings.schema, settings.slots) == ("dbname=flag", "pgqueue", 7)
    assert settings.lease_duration == timedelta(seconds=9)
    assert Context().settings_over(base, slots=3).slots == 3
    assert Context().settings_over(base).dsn == "dbname=environment"


def test_python_m_pgqueue_is_the_same_command():
    process = subprocess.run([sys.executable, "-m", "pgqueue", "--version"], capture_output=True, text=True, check=True)
    assert process.stdout == f"pgqueue {version('pgqueue')}\n"


def test_help_does_not_load_the_heavy_parts_of_the_command_line():
    code = "import sys; from pgqueue.cli import main; main(['--help']); print('structlog' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert process.stdout.splitlines()[-1] == "False"


def test_values_are_shown_as_people_read_them():
    assert [show(value) for value in (None, True, 1.25, ["a", "b"], [], timedelta(hours=36), "a\nb\x00")] == [
        "-", "yes", "1.2", "a, b", "-", "1d12h", "a b\\x00",
    ]  # fmt: skip
    assert one_line("a\n\tb") == "a b"


def test_main_answers_the_exit_code():
    assert main(["--version"]) == 0
