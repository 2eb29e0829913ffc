"""The comparison with other queues still runs: pgqueue's own adapter, at a tiny size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.peers import report
from benchmarks.peers.charts import draw
from benchmarks.peers.install import PEERS
from benchmarks.peers.regimes import BEHIND, REGIMES

if TYPE_CHECKING:
    from servers import Server

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.peers", *options]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=240, check=False)


@pytest.mark.timeout(240)
def test_pgqueue_through_the_regimes(server: Server, tmp_path: Path) -> None:
    figures, charts = tmp_path / "figures.json", tmp_path / "charts"
    chosen, cases = ("enqueue", "drain", "latency"), "1 client,1 process,one worker"
    options = (
        "--regimes",
        ",".join(chosen),
        "--only",
        "pgqueue",
        "--size",
        "smoke",
        "--case",
        cases,
        "--dsn",
        server.admin_dsn,
    )
    done = run(*options, "--json", str(figures), "--charts", str(charts))
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(figures.read_text())
    assert content["machine"]["peers"].keys() == {"pgqueue"}
    for regime in (REGIMES[name] for name in chosen):
        [(name, found)] = content["regimes"][regime.name]["cases"].items()
        assert regime.columns[0].key in found["pgqueue"]["median"], f"{regime.name}, {name}"
        [case] = [case for case in regime.cases if case.name == name]
        for name, _ in case.floors:
            assert found[name]["pgqueue_to_it"][regime.columns[0].key] > 0
    assert len(list(charts.glob("*.svg"))) == len(chosen)


def test_an_unknown_peer_is_refused() -> None:
    done = run("--only", "rabbits")
    assert done.returncode == 2
    assert "no rabbits; there are pgqueue" in done.stderr


def test_every_peer_has_an_adapter_and_pinned_packages() -> None:
    for peer in PEERS.values():
        if peer.is_node:
            assert (peer.folder / "adapter.mjs").exists()
            assert "resolved" not in (peer.folder / "package-lock.json").read_text(), "a lock names no registry"
        elif peer.name != "pgqueue":
            assert (peer.folder / "adapter.py").exists()
            pins = (peer.folder / "requirements.txt").read_text().split()
            assert all("==" in pin for pin in pins)


def test_who_falls_behind_gets_no_ratio() -> None:
    regime = REGIMES["steady"]
    case = regime.cases[0]
    slow = {"p50_ms": 5_000.0, "p99_ms": 9_000.0, "jobs_per_s": 200.0, BEHIND: 800.0}
    rounds: list[report.Round] = [
        {"pgqueue": {"p50_ms": ours, "p99_ms": 4.0, BEHIND: 0.0}, "chancy": {"p50_ms": 8.0, BEHIND: 0.0}, "oban": slow}
        for ours in (1.0, 2.0, 4.0)
    ]
    assert report.median(rounds, "pgqueue", "p50_ms") == 2.0
    assert report.ratio_of(rounds, "chancy", "p50_ms") == 0.25
    assert report.ratio_of(rounds, "oban", "p50_ms") is None
    [table] = report.make_tables(regime, {(regime.name, case.name): rounds}, {})
    assert "falls behind" in list(table.columns[1].cells)
    facts = {
        "date": "2030-01-01T00:00", "cpu": "c", "cores": 2, "memory_gib": 1.5, "kernel": "k", "postgresql": "18",
        "settings": {"fsync": "on"}, "peers": {"pgqueue": "1", "chancy": "2.3", "oban": "4"},
    }  # fmt: skip
    chart = draw(regime, case, rounds, facts)
    assert "falls behind" in chart
    assert "PostgreSQL 18, fsync=on; pgqueue 1; Oban for Python 4; Chancy 2.3" in chart


def test_pgqueues_adapter_refuses_an_unknown_command() -> None:
    environment = {**os.environ, "BENCH_DSN": "postgresql://nobody@127.0.0.1:1/nothing", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*PEERS["pgqueue"].command, "dance"], env=environment, text=True, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "invalid choice: 'dance'" in done.stderr
