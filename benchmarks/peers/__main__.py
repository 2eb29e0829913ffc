"""``python -m benchmarks.peers``: install the peers, measure all in turn, print tables, write JSON and plots."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.peers.charts import write_charts
from benchmarks.peers.install import PEERS, InstallError
from benchmarks.peers.regimes import REGIMES, SIZES, PeersBench
from benchmarks.peers.report import as_json, as_markdown, make_tables
from benchmarks.report import headline, machine
from benchmarks.server import open_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.install import Peer
    from benchmarks.peers.regimes import Case, Regime, Size
    from benchmarks.peers.report import Round, Rounds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says; answers the exit code: 1 when a peer could not be measured everywhere."""
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 180)
    run = Run(SIZES[options.size], Console(stderr=True))
    peers = run.install([PEERS[name] for name in options.only])
    if options.install_only:
        return 1 if run.failures else 0
    regimes = [_chosen(REGIMES[name], options) for name in options.regimes]
    with open_server(options.dsn, tcp=True) as server:
        facts = machine(server) | {"peers": {peer.name: peer.version for peer in peers}}
        console.print(headline(facts), highlight=False)
        console.print(", ".join(f"{peer.title} {peer.version}" for peer in peers), highlight=False)
        bench = PeersBench(server, run.size.floor)
        end = time.monotonic() + 60 * options.minutes
        try:
            with bench.stack:
                for nth in range(1, options.repeat + 1):
                    for regime in regimes:
                        for case in regime.cases:
                            if time.monotonic() > end:
                                raise TimeoutError  # noqa: TRY301
                            run.case(bench, regime, case, peers, f"round {nth}/{options.repeat}")
        except KeyboardInterrupt:
            console.print("interrupted; so far:")
        except TimeoutError:
            console.print(f"{options.minutes:g} minutes are over in round {nth}; what was not reached has fewer rounds")
    run.report(console, regimes, options.repeat)
    _write(options, regimes, run, facts)
    return 1 if run.failures else 0


class Run:
    """What has been measured, and what could not be."""

    def __init__(self, size: Size, progress: Console) -> None:
        self.size = size
        self.measured: Rounds = {}
        self.failures: dict[tuple[str, str, str], str] = {}
        self._progress = progress

    def install(self, peers: list[Peer]) -> list[Peer]:
        """Those that are there now."""
        there = []
        for peer in peers:
            with self._progress.status(f"installing {peer.title}"):
                try:
                    peer.install()
                    there.append(peer)
                except InstallError as error:
                    self._fail("install", "", peer.name, error)
        return there

    def case(self, bench: PeersBench, regime: Regime, case: Case, peers: list[Peer], label: str) -> None:
        """One round of a case: the floors, then each peer; who fails is left out."""
        into: Round = {}
        self.measured.setdefault((regime.name, case.name), []).append(into)
        steps: list[tuple[str, Any]] = [
            *((name, lambda measure=measure: measure(bench)) for name, measure in case.floors),
            *((peer.name, lambda peer=peer: case.run(bench, self.size, peer)) for peer in peers),
        ]
        for name, step in steps:
            with self._progress.status(f"{label}: {regime.name}, {case.name}: {name}"):
                try:
                    into[name] = step()
                except Exception as error:  # noqa: BLE001 - one peer's trouble is no reason to lose the others' figures
                    self._fail(regime.name, case.name, name, error)

    def report(self, console: Console, regimes: list[Regime], rounds: int) -> None:
        """The tables, and what is missing in them."""
        for regime in regimes:
            for table in make_tables(regime, self.measured, self.failures):
                console.print(table)
        for (regime_name, case, name), why in self.failures.items():
            console.print(f"{name}: {regime_name} {case}: {why}", style="red", highlight=False)
        console.print(
            f"{self.size.name} size, {rounds} rounds, interleaved: medians (least..most); ratios within a round",
            style="dim",
        )

    def _fail(self, regime: str, case: str, name: str, error: Exception) -> None:
        self.failures[regime, case, name] = f"{type(error).__name__}: {error}"
        self._progress.print(f"{name}: {regime} {case}: {error}", style="red", highlight=False)


def _write(options: argparse.Namespace, regimes: list[Regime], run: Run, facts: dict[str, Any]) -> None:
    """The files that were asked for."""
    if options.json is not None:
        tables = {regime.name: as_json(regime, run.measured) for regime in regimes}
        failures = [{"where": list(where), "why": why} for where, why in run.failures.items()]
        content = {"size": run.size.name, "machine": facts, "regimes": tables, "failures": failures}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    if options.markdown is not None:
        pages = [as_markdown(regime, run.measured, run.failures) for regime in regimes]
        options.markdown.write_text("\n".join(pages))
    if options.charts is not None:
        write_charts(options.charts, regimes, run.measured, facts)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "--quick", dest="size", action="store_const", const="quick", default="full", help="small sizes, one round"
    )
    parser.add_argument("--size", choices=SIZES, default="full", help="how much; smoke only shows that it works")
    parser.add_argument("--only", type=_names(PEERS), default=list(PEERS), metavar=",".join(PEERS), help="these peers")
    parser.add_argument(
        "--regimes", type=_names(REGIMES), default=list(REGIMES), metavar=",".join(REGIMES), help="these regimes"
    )
    parser.add_argument(
        "--case", type=_texts, default=[""], metavar="TEXT,TEXT", help="only cases whose name has one of these in it"
    )
    parser.add_argument("--repeat", type=int, help="rounds; default 3, or 1 when quick")
    parser.add_argument("--minutes", type=float, help="begin nothing after this time; default 55, or 5 when quick")
    parser.add_argument("--dsn", help="use this server (makes and drops databases there); default: a private one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds to this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables for a page to this file")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="write bar charts as SVG to this folder")
    parser.add_argument("--install-only", action="store_true", help="install the peers, measure nothing")
    options = parser.parse_args(arguments)
    options.minutes = options.minutes or (55 if options.size == "full" else 5)
    options.repeat = options.repeat or (3 if options.size == "full" else 1)
    return options


def _chosen(regime: Regime, options: argparse.Namespace) -> Regime:
    cases = [
        case
        for case in regime.cases
        if any(text in case.name for text in options.case) and (case.quick or options.size != "quick")
    ]
    return replace(regime, cases=cases)


def _texts(text: str) -> list[str]:
    return text.split(",")


def _names(known: Any) -> Any:
    def names(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",")]
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(known)}")
        return found

    return names


if __name__ == "__main__":
    sys.exit(main())
