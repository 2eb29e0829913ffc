"""The examples with tests of their own: they pass, with pytest's plugin and with Django's runner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import invariants
import psycopg
import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def run(folder: Path, dsn: str, *arguments: str) -> str:
    environment = {**os.environ, "PGQUEUE_DSN": dsn, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_examples_for_pytest_pass_and_leave_nothing_behind(dsn, tmp_path):
    folders = ["tested_shop", "flask_app", "asyncpg_app"]
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    plugins = ["-p", "no:pgqueue", "-p", "pgqueue.testing.plugin", "-p", "no:cacheprovider"]
    rest = ["-q", "-c", str(tmp_path / "pytest.ini"), "--rootdir", str(EXAMPLES)]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA pgqueue_test_5_abcdef")  # of a run that was killed, in 1970
        output = run(EXAMPLES, dsn, "-m", "pytest", *plugins, *rest, *folders)
        assert "7 passed" in output
        invariants.check(dsn, [])
        left = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgqueue_test_%'").fetchall()
        assert left == []
        assert connection.execute("SELECT count(*) FROM shop_users").fetchone() == (0,)


@pytest.mark.slow
def test_the_example_for_django_passes(dsn):
    output = run(EXAMPLES / "django_app", dsn, "manage.py", "test", "--noinput")
    assert "Ran 3 tests" in output
    invariants.check(dsn, [])
