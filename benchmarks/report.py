"""The run as tables and as JSON: medians of the rounds with their spread, ratios within each round, the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.harness import Case, Column, Measures, Regime
    from benchmarks.server import Server

Rounds = list[dict[str, "Measures"]]
_PACKAGES = ("pgqueue", "psycopg", "uvloop", "orjson", "pydantic")


def make_table(regime: Regime, rounds: Rounds) -> Table:
    """A regime's table."""
    table = Table(title=regime.title, title_justify="left", title_style="bold", header_style="dim")
    table.add_column("")
    for column in regime.columns:
        table.add_column(column.title, justify="right")
        if column.ratio:
            table.add_column("of floor", justify="right", style="cyan")
    for case in regime.cases:
        if not _values(rounds, case.name, None):
            continue
        cells = [case.name]
        for column in regime.columns:
            cells.append(_cell(column, _values(rounds, case.name, column.key)))
            if column.ratio:
                cells.append(_ratio(case, column.key, rounds))
        table.add_row(*cells, style=None if case.floor else "dim")
    return table


def as_json(regime: Regime, rounds: Rounds) -> dict[str, Any]:
    """The same, with every round's figures."""
    cases: dict[str, Any] = {}
    for case in regime.cases:
        values = {column.key: _values(rounds, case.name, column.key) for column in regime.columns}
        medians = {key: statistics.median(found) for key, found in values.items() if found}
        if not medians:
            continue
        ratios = {column.key: _ratios(case, column.key, rounds) for column in regime.columns if column.ratio}
        cases[case.name] = {
            "median": medians,
            "rounds": {key: found for key, found in values.items() if found},
            "floor": case.floor,
            "ratio_to_floor": {key: statistics.median(found) for key, found in ratios.items() if found},
        }
    return {"title": regime.title, "cases": cases}


def machine(server: Server) -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES} | {"psycopg implementation": psycopg.pq.__impl__},
        "commit": _commit(),
        "postgresql": server.version,
        "settings": server.settings,
        "load_average": os.getloadavg()[0],
    }


def headline(facts: dict[str, Any]) -> str:
    """The machine in two lines."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)
    settings = ", ".join(f"{name}={value}" for name, value in facts["settings"].items())
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['kernel']};"
        f" load average {facts['load_average']:.1f}\nPython {facts['python']}, {packages}; commit {facts['commit']}"
        f"\nPostgreSQL {facts['postgresql']}: {settings}"
    )


def _values(rounds: Rounds, name: str, key: str | None) -> list[float]:
    found = [measures[name] for measures in rounds if name in measures]
    if key is None:
        return [1.0] * len(found)
    return [value for measures in found if (value := measures.get(key)) is not None]


def _cell(column: Column, values: list[float]) -> str:
    if not values:
        return "-"
    text = format(statistics.median(values), column.style)
    if column.spread and len(values) > 1:
        text += f" ({format(min(values), column.style)}..{format(max(values), column.style)})"
    return text


def _ratio(case: Case, key: str, rounds: Rounds) -> str:
    ratios = _ratios(case, key, rounds)
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def _ratios(case: Case, key: str, rounds: Rounds) -> list[float]:
    """Within each round, so that what slowed the machine down slowed both."""
    ratios = []
    for measures in rounds:
        ours = measures.get(case.name, {}).get(key)
        floor = measures.get(case.floor or "", {}).get(key)
        if ours is not None and floor:
            ratios.append(ours / floor)
    return ratios


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
