"""``python -m benchmarks``: all regimes, or those of ``--only``; tables on the terminal, JSON in a file."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks import (
    backlog,
    distance,
    drain,
    enqueue,
    flows,
    http,
    keys,
    latency,
    memory,
    recovery,
    rest,
    scale,
    steady,
)
from benchmarks.harness import SIZES, Bench
from benchmarks.report import Rounds, as_json, headline, machine, make_table
from benchmarks.server import open_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness import Regime

_MODULES = (enqueue, drain, keys, latency, steady, rest, flows, backlog, recovery, memory, scale, distance, http)
REGIMES = {module.REGIME.name: module.REGIME for module in _MODULES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says; answers the exit code."""
    options = _parse(arguments)
    size = SIZES[options.size]
    size = replace(size, drain=options.jobs or size.drain, steady=options.seconds or size.steady)
    regimes = [REGIMES[name] for name in options.only]
    console = Console(width=None if sys.stdout.isatty() else 180)
    progress = Console(stderr=True)
    measured: dict[str, Rounds] = {regime.name: [] for regime in regimes}
    with open_server(options.dsn) as server:
        facts = machine(server)
        console.print(headline(facts), highlight=False)
        bench = Bench(server, size)
        try:
            for nth in range(1, options.repeat + 1):
                for regime in regimes:
                    measured[regime.name].append({})
                    _run_round(
                        bench,
                        _only(regime, options.case or ()),
                        measured[regime.name][-1],
                        f"{nth}/{options.repeat}",
                        progress,
                    )
        except KeyboardInterrupt:
            console.print("interrupted; so far:")
    for regime in regimes:
        console.print(make_table(regime, measured[regime.name]))
    console.print(
        f"{options.size} size, {options.repeat} rounds, interleaved: medians (least..most); ratios within a round",
        style="dim",
    )
    if options.json is not None:
        _write(options.json, options.size, facts, regimes, measured)
    return 0


def _run_round(bench: Bench, regime: Regime, into: dict[str, Any], label: str, progress: Console) -> None:
    for case in regime.cases:
        if case.when(bench.size):
            with progress.status(f"round {label}: {regime.name}: {case.name}"):
                into[case.name] = case.run(bench)


def _only(regime: Regime, texts: Sequence[str]) -> Regime:
    """The regime with the cases that have one of these in their names, and the floors of those; no text: with all."""
    chosen = [case for case in regime.cases if not texts or any(text in case.name for text in texts)]
    floors = {case.floor for case in chosen}
    return replace(regime, cases=[case for case in regime.cases if case in chosen or case.name in floors])


def _write(path: Path, size: str, facts: dict[str, Any], regimes: list[Regime], measured: dict[str, Rounds]) -> None:
    tables = {regime.name: as_json(regime, measured[regime.name]) for regime in regimes}
    path.write_text(json.dumps({"size": size, "machine": facts, "regimes": tables}, indent=2) + "\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="regimes:\n" + "\n".join(f"  {name:<9} {regime.title}" for name, regime in REGIMES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        dest="size",
        action="store_const",
        const="quick",
        default="full",
        help="small sizes, one round: about 10 minutes",
    )
    parser.add_argument("--size", choices=SIZES, default="full", help="how much; smoke only shows that it works")
    parser.add_argument("--only", type=_names, default=list(REGIMES), metavar="A,B", help="these regimes only")
    parser.add_argument(
        "--case",
        action="append",
        metavar="TEXT",
        help="only cases whose name has this in it, and their floors; may be said again",
    )
    parser.add_argument(
        "--dsn", help="use this server (makes and drops databases there); default: a private one on disk"
    )
    parser.add_argument("--repeat", type=int, help="rounds; default 3, or 1 when quick")
    parser.add_argument("--jobs", type=int, help="jobs to drain")
    parser.add_argument("--seconds", type=float, help="length of a steady load; default 10, or 4 when quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds to this file")
    options = parser.parse_args(arguments)
    options.repeat = options.repeat or (3 if options.size == "full" else 1)
    return options


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in REGIMES]:
        raise argparse.ArgumentTypeError(f"no regime {', '.join(unknown)}; there are {', '.join(REGIMES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
