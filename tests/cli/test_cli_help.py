"""Help that reads like a manual page, and words for those who misspell."""

from __future__ import annotations

import pytest


def test_help_names_no_types_draws_no_boxes_and_fits_into_100_columns(pgq, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for argv in ([], ["enqueue"], ["worker"], ["job"], ["job", "list"], ["queue", "retention"], ["db"]):
        out = pgq(*argv, "--help").out
        assert max(map(len, out.splitlines())) <= 100
        for noise in ("<", "│", "╭", "x>=", "<="):
            assert noise not in out, (argv, noise)


def test_help_tells_a_commands_own_options_apart_from_those_of_every_command(pgq):
    own, shared = pgq("job", "list", "--help").out.split("Options of every command:")
    assert "  -q, --queue NAME " in own
    assert "      --state STATE " in own
    assert "Default: 50." in own
    assert "--dsn DSN" in shared
    assert "      --json  " in shared
    assert "--queue" not in shared


def test_the_list_of_commands_holds_the_first_sentence_of_each_whole(pgq):
    out = " ".join(pgq("--help").out.split())
    assert "enqueue, work, kill a worker, recover, drain 20,000 jobs." in out
    assert "..." not in out.split("Commands:")[1].split("Options:")[0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["worker", "--queue", "x"], "no option --queue; did you mean --queues? See: pgq worker --help"),
        (["enqueue", "--queues", "x"], "no option --queues; did you mean --queue? See: pgq enqueue --help"),
        (["enqueue", "--prioritty", "1"], "did you mean --priority?"),
        (["enqueue", "--zzz"], "no option --zzz; see: pgq enqueue --help"),
        (["enqueue", "--payload"], "requires an argument; see: pgq enqueue --help"),
        (["enqueu"], "no command 'enqueu'; did you mean pgq enqueue or pgq queue?"),
        (["jobs"], "did you mean pgq job?"),
        (["job", "lst"], "no command 'lst'; did you mean pgq job list? See: pgq job --help"),
        (["list"], "did you mean pgq job list or pgq batch list or pgq dead list or pgq queue list or"),
        (["redrive"], "did you mean pgq dead redrive?"),
        (["zzz"], "no command 'zzz'; see: pgq --help"),
        (["worker", "x"], "unexpected 'x'; see: pgq worker --help"),
        (["worker", "--lease", "1x"], "--lease '1x' is not a duration; write 30s"),
        (["migrate", "--sql", "--check"], "say --sql or --check, not both"),
        (["queue", "retention", "dead"], "say how long, too: pgq queue retention dead 7d"),
    ],
)
def test_a_mistake_is_answered_with_what_was_meant(argv, said, pgq):
    answer = pgq(*argv)
    assert answer.code == 2
    assert said in answer.error


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["echo", '{"a":1}'], """a payload goes with its option: pgq enqueue echo --payload '{"a":1}'"""),
        (["echo", '{"a":', "1}"], """pgq enqueue echo --payload '{"a": 1}'"""),
        (['{"a":1}'], """pgq enqueue --payload '{"a":1}'"""),
        (["echo", "x", "y"], "unexpected 'x y'"),
        (["echo", "--payload", "{a:", "1}"], """quote the JSON as one word: --payload '{"a": 1}'"""),
        (["--payload", "{a:1}"], """in the shell, put it in single quotes: --payload '{"a": 1}'"""),
        (["--payload", "hello"], """for a text, write: --payload '"hello"'"""),
    ],
)
def test_a_payload_that_the_shell_or_its_author_broke_is_answered_with_the_right_words(argv, said, queue, pgq):
    answer = pgq("enqueue", *argv)
    assert answer.code == 2
    assert said in answer.error
    assert queue.jobs() == []


def test_what_is_wrong_in_stdin_is_not_blamed_on_the_shell(queue, pgq):
    assert "shell" not in pgq("enqueue", "--payload", "-", stdin="{a:1}").error


def test_an_unreachable_database_is_asked_about_once(pgq):
    assert pgq("stats", "--dsn", "postgresql://127.0.0.1:1/x").error.count("?") == 1


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_an_error_has_no_colours_for_who_wants_none(variable, terminal, pgq, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal("stderr")
    assert "\x1b[31m" in pgq("zzz").err
    monkeypatch.setenv(*variable)
    assert pgq("zzz").err.startswith("error: no command")
