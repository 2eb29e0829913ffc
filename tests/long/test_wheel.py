"""What `pip install` gives: the wheel, in a venv that holds nothing else, on a database without a schema."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HAS_UV = importlib.util.find_spec("uv") is not None

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def run(*command: str | Path, **options: object) -> str:
    """Run a command to its end; its output is part of a failure."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    if HAS_UV:
        run(sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    else:
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("pgqueue-*.whl")
    return built


@pytest.fixture
def bin_folder(wheel, tmp_path) -> Path:
    """`bin` of a venv in which only the wheel and its dependencies are installed."""
    venv = tmp_path / "venv"
    if HAS_UV:
        run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, venv)
        run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", venv / "bin/python", wheel)
    else:
        run(sys.executable, "-m", "venv", venv)
        run(venv / "bin/python", "-m", "pip", "install", "--quiet", wheel)
    return venv / "bin"


def test_the_wheel_carries_the_migrations_the_statements_and_the_type_marker(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "pgqueue/sql").glob("*.sql"):
        assert f"pgqueue/sql/{path.name}" in names
    for path in [ROOT / "alembic/env.py", *(ROOT / "alembic/versions").glob("*.*")]:
        assert f"pgqueue/_migrations/{path.relative_to(ROOT / 'alembic')}" in names
    assert "pgqueue/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [
        name for name in names if name.startswith(("tests/", "alembic/", "benchmarks/")) or "__pycache__" in name
    ]


def test_the_installed_wheel_migrates_enqueues_and_works(bin_folder, empty_dsn, tmp_path):
    environment = {**os.environ, "PGQUEUE_DSN": empty_dsn}
    environment.pop("PYTHONPATH", None)
    options = {"cwd": tmp_path, "env": environment}  # not in the checkout: nothing of it can be imported
    pgq, python = bin_folder / "pgq", bin_folder / "python"

    assert run(python, "-c", "import pgqueue; print(pgqueue.__file__)", **options).startswith(str(bin_folder.parent))
    missing = subprocess.run([pgq, "enqueue"], capture_output=True, text=True, check=False, **options)
    assert missing.returncode == 4
    assert "pgq migrate" in missing.stderr
    run(pgq, "migrate", **options)
    job_id = run(pgq, "enqueue", "--payload", '{"hello": "world"}', **options)

    worker = subprocess.Popen([pgq, "worker"], stderr=subprocess.PIPE, text=True, **options)
    try:
        assert '"hello"' in run(pgq, "job", "wait", job_id, "--timeout", "60s", **options)
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=40)
        assert worker.returncode == 0, log
    finally:
        worker.kill()
        worker.communicate()
    assert "completed" in run(pgq, "job", "show", job_id, **options)

    versions = {run(*name, "--version", **options) for name in ([bin_folder / "pgqueue"], [python, "-m", "pgqueue"])}
    assert len(versions) == 1
