"""The benchmarks still run: on the tests' server, and on a private one that they start and stop themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgqueue import embedded
from pgqueue.errors import EmbeddedServerError

if TYPE_CHECKING:
    from servers import Server

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def run(*options: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run it to its end; answers how it went, and its pid (which its databases are named after)."""
    command = [sys.executable, "-m", "benchmarks", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err), process.pid


def cases(path: Path, regime: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["regimes"][regime]["cases"]
    return found


def test_drain_on_a_server_of_its_own(tmp_path: Path) -> None:
    try:
        embedded.find_binaries()
    except EmbeddedServerError as error:
        pytest.skip(str(error))
    figures = tmp_path / "figures.json"
    options = ("--size", "smoke", "--only", "drain", "--case", "processes", "--jobs", "500")
    done, pid = run(*options, "--json", str(figures))
    assert done.returncode == 0, done.stderr
    assert "2 processes, async" in done.stdout
    found = cases(figures, "drain")
    assert found["statements bare, 2 connections"]["median"]["jobs_per_s"] > 0
    assert found["2 processes, async"]["ratio_to_floor"]["jobs_per_s"] > 0
    assert not list(Path("/var/tmp").glob(f"pgqueue-bench-{pid}-*")), "it cleans up"


def test_latency_and_steady_load_on_a_given_server(server: Server, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done, pid = run("--size", "smoke", "--only", "latency,steady", "--dsn", server.admin_dsn, "--json", str(figures))
    assert done.returncode == 0, done.stderr
    assert cases(figures, "latency")
    assert cases(figures, "steady")
    with psycopg.connect(server.admin_dsn) as connection:
        left = connection.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE %s", [f"pgqueue_bench_{pid}_%"]
        ).fetchall()
    assert not left, "it drops its databases"


def test_the_regimes_of_scale_and_of_trouble(server: Server, tmp_path: Path) -> None:
    """A case of each; all of them are minutes."""
    try:
        embedded.find_binaries()
    except EmbeddedServerError as error:
        pytest.skip(str(error))  # what restarts a server needs one of its own
    figures = tmp_path / "figures.json"
    chosen = [f"--case={text}" for text in ("many due", "immediate", "1 queue", "proxy")]
    options = ("--size", "smoke", "--only", "backlog,recovery,scale,distance", *chosen, "--dsn", server.admin_dsn)
    done, _ = run(*options, "--json", str(figures))
    assert done.returncode == 0, done.stderr
    assert cases(figures, "backlog")["many due"]["ratio_to_floor"]["jobs_per_s"] > 0
    restart = cases(figures, "recovery")["immediate restart, 1,000 jobs/s"]["median"]
    assert (restart["lost"], restart["twice_not_held"]) == (0, 0)
    assert cases(figures, "scale")["1 worker, 1 queue"]["median"]["look_ms"] > 0
    assert cases(figures, "distance")["through the proxy at once"]["median"]["jobs_per_s"] > 0


def test_an_unknown_regime_is_refused() -> None:
    done, _ = run("--only", "sleep")
    assert done.returncode == 2
    assert "no regime sleep" in done.stderr
