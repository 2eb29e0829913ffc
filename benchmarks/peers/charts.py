"""Bar charts as SVG: one for each case, its first column, a bar for the floor and for each peer, and what ran where."""

from __future__ import annotations

import re
import textwrap
from html import escape
from typing import TYPE_CHECKING, Any

from benchmarks.peers.install import PEERS
from benchmarks.peers.regimes import BEHIND
from benchmarks.peers.report import OURS, median, names, title, values

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.harness import Column
    from benchmarks.peers.regimes import Case, Regime
    from benchmarks.peers.report import Round, Rounds

_WIDTH, _LABEL, _FIGURE = 720, 250, 90
_ROW, _BAR, _TOP, _LINE = 26, 16, 52, 16
_OURS, _OTHER, _FLOOR, _TEXT = "#2563eb", "#94a3b8", "#d4d4d8", "#1f2937"
_FONT = "font-family='sans-serif' font-size='12'"


def write_charts(folder: Path, regimes: Sequence[Regime], measured: Rounds, facts: dict[str, Any]) -> None:
    """One file for each case that has figures: ``REGIME-CASE.svg``. ``facts``: of the machine, as in the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for regime in regimes:
        for case in regime.cases:
            rounds = measured.get((regime.name, case.name), [])
            if any(rounds):
                name = re.sub(r"\W+", "-", f"{regime.name}-{case.name}")
                (folder / f"{name}.svg").write_text(draw(regime, case, rounds, facts))


def draw(regime: Regime, case: Case, rounds: list[Round], facts: dict[str, Any]) -> str:
    """The chart."""
    column = regime.columns[0]
    who = [name for name in names(case) if any(name in measures for measures in rounds)]
    figures = {name: median(rounds, name, column.key) for name in who}
    longest = max((figure for name, figure in figures.items() if figure and not _behind(rounds, name)), default=1)
    parts = [
        _text(12, 20, regime.title, "font-weight='bold'"),
        _text(12, 38, f"{case.name}: {column.title}{' (shorter is better)' if column.ratio != 'more' else ''}"),
    ]
    for nth, name in enumerate(who):
        parts += _bar(_TOP + nth * _ROW, name, column, rounds, longest)
    below = _TOP + len(who) * _ROW + 18
    notes = _notes(facts, [name for name in who if name in facts["peers"]])
    parts += [_text(12, below + nth * _LINE, note, "opacity='0.7'") for nth, note in enumerate(notes)]
    height = below + len(notes) * _LINE
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height}'"
        f" viewBox='0 0 {_WIDTH} {height}'><rect width='100%' height='100%' fill='white'/>{''.join(parts)}</svg>\n"
    )


def _bar(top: int, name: str, column: Column, rounds: list[Round], longest: float) -> list[str]:
    middle = top + _BAR - 4
    label = _text(_LABEL - 8, middle, title(name), "text-anchor='end'")
    found = values(rounds, name, column.key)
    figure = median(rounds, name, column.key)
    if _behind(rounds, name) or figure is None:
        return [label, _text(_LABEL + 4, middle, "falls behind" if found else "-")]
    scale = (_WIDTH - _LABEL - _FIGURE) / longest
    color = _OURS if name == OURS else _OTHER if name in PEERS else _FLOOR
    bar = f"<rect x='{_LABEL}' y='{top}' width='{max(1.0, figure * scale):.1f}' height='{_BAR}' fill='{color}'/>"
    line = ""
    if len(found) > 1:  # the least and the most of the rounds
        left, right = (_LABEL + edge(found) * scale for edge in (min, max))
        line = f"<line x1='{left:.1f}' x2='{right:.1f}' y1='{top + 8}' y2='{top + 8}' stroke='{_TEXT}'/>"
    end = _LABEL + max([figure, *found]) * scale
    return [label, bar, line, _text(round(end) + 6, middle, format(figure, column.style))]


def _notes(facts: dict[str, Any], peers: list[str]) -> list[str]:
    """The machine and the versions, in lines as wide as the chart."""
    machine = (
        f"{facts['date'][:10]}: {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']:g} GiB, {facts['kernel']};"
    )
    settings = ", ".join(f"{name}={value}" for name, value in facts["settings"].items())
    versions = "; ".join(f"{title(name)} {facts['peers'][name]}" for name in peers)
    return textwrap.wrap(f"{machine} PostgreSQL {facts['postgresql']}, {settings}; {versions}", 112)


def _behind(rounds: list[Round], name: str) -> bool:
    return any(values(rounds, name, BEHIND))


def _text(x: int, y: int, text: str, more: str = "") -> str:
    return f"<text x='{x}' y='{y}' {_FONT} fill='{_TEXT}' {more}>{escape(text)}</text>"
