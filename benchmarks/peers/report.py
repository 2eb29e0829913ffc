"""The run as tables and as JSON: each case has one table, each peer one line, with its ratio pgqueue / peer."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benchmarks.peers.install import PEERS
from benchmarks.peers.regimes import BEHIND, UNSENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.harness import Column, Measures
    from benchmarks.peers.regimes import Case, Regime

OURS = "pgqueue"
Round = dict[str, "Measures"]  # of one case: by the peer's name, or the floor's
Rounds = dict[tuple[str, str], list[Round]]  # by regime and case


def make_tables(regime: Regime, measured: Rounds, failures: Mapping[tuple[str, str, str], str]) -> list[Table]:
    """One table for each case that was measured."""
    tables = []
    for case in regime.cases:
        rounds = measured.get((regime.name, case.name), [])
        table = Table(title=f"{regime.title}\n{case.name}", title_justify="left", title_style="bold")
        table.add_column("")
        for column in regime.columns:
            table.add_column(column.title, justify="right")
            if column.ratio:
                table.add_column("pgqueue / it", justify="right", style="cyan")
        for name in names(case):
            if any(name in measures for measures in rounds):
                table.add_row(title(name), *_cells(regime, rounds, name), style=None if name in PEERS else "dim")
            elif (why := failures.get((regime.name, case.name, name))) is not None:
                table.add_row(title(name), f"failed: {why.splitlines()[0][:100]}")
        if table.row_count:
            tables.append(table)
    return tables


def as_markdown(regime: Regime, measured: Rounds, failures: Mapping[tuple[str, str, str], str]) -> str:
    """The same tables for a page."""
    text = []
    for table in make_tables(regime, measured, failures):
        columns = [str(column.header) for column in table.columns]
        cells = [list(column.cells) for column in table.columns]
        rows = [[_plain(str(column[nth])) for column in cells] for nth in range(table.row_count)]
        name = str(table.title).replace("\n", ", ")
        lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
        text.append(f"### {name}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(text) + "\n"


def as_json(regime: Regime, measured: Rounds) -> dict[str, Any]:
    """The same, with every round's figures."""
    cases: dict[str, Any] = {}
    for case in regime.cases:
        rounds = measured.get((regime.name, case.name), [])
        found = {}
        for name in names(case):
            own = [dict(measures[name]) for measures in rounds if name in measures]
            if own:
                keys = {key for figures in own for key, value in figures.items() if value is not None}
                found[name] = {
                    "median": {key: median(rounds, name, key) for key in sorted(keys)},
                    "rounds": own,
                    "pgqueue_to_it": {
                        column.key: ratio
                        for column in regime.columns
                        if column.ratio and (ratio := ratio_of(rounds, name, column.key)) is not None
                    },
                }
        if found:
            cases[case.name] = found
    return {"title": regime.title, "cases": cases}


def names(case: Case) -> list[str]:
    """Whose lines a table may have: the floors', then the peers'."""
    return [*(name for name, _ in case.floors), *PEERS]


def title(name: str) -> str:
    """How a peer is called."""
    return PEERS[name].title if name in PEERS else name


def median(rounds: list[Round], name: str, key: str) -> float | None:
    """Of the rounds; None when there is none."""
    found = values(rounds, name, key)
    return statistics.median(found) if found else None


def values(rounds: list[Round], name: str, key: str) -> list[float]:
    """One a round."""
    return [value for measures in rounds if (value := measures.get(name, {}).get(key)) is not None]


def ratio_of(rounds: list[Round], name: str, key: str) -> float | None:
    """pgqueue's figure through that of ``name``, within each round, so that what slowed the machine slowed both."""
    found = []
    for measures in rounds:
        ours, its = (measures.get(one, {}) for one in (OURS, name))
        if (top := ours.get(key)) is not None and (bottom := its.get(key)) and not its.get(BEHIND):
            found.append(top / bottom)
    return statistics.median(found) if found else None


def _cells(regime: Regime, rounds: list[Round], name: str) -> list[str]:
    cells = []
    behind, unsent = (max(values(rounds, name, key), default=0) for key in (BEHIND, UNSENT))
    story = f"{unsent:,.0f} not enqueued" if unsent else f"{behind:,.0f} not run"
    for column in regime.columns:
        if behind and column.ratio:
            cells += ["falls behind" if column is regime.columns[0] else story, ""]
            continue
        cells.append(_cell(column, values(rounds, name, column.key)))
        if column.ratio:
            ratio = ratio_of(rounds, name, column.key) if name != OURS else None
            cells.append("" if ratio is None else f"{ratio:.2f}")
    return cells


def _plain(text: str) -> str:
    """As a page has it: our own line is bold, a range has a dash."""
    return "**pgqueue**" if text == title(OURS) else text.replace("..", "\N{EN DASH}")


def _cell(column: Column, found: list[float]) -> str:
    if not found:
        return "-"
    text = format(statistics.median(found), column.style)
    if column.spread and len(found) > 1:
        text += f" ({format(min(found), column.style)}..{format(max(found), column.style)})"
    return text
