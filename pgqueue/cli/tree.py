"""The picture of ``pgq job tree``: who waits for whom, in lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgqueue.cli.text import age, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pgqueue.job import JobRecord
    from pgqueue.statements import BatchRecord

_MOST_MEMBERS = 20  # of one batch, beside the one that was asked for
_INTERESTING = {"dead": 0, "cancelled": 1, "running": 2, "retrying": 3, "available": 4, "scheduled": 5}
_MOST_NAMED = 5
_DEEPEST = 40  # then the lines are no longer indented further


class Tree:
    """Jobs and batches; each is drawn once, below the first one that it depends on, and names the others."""

    def __init__(self, asked: int, records: Sequence[JobRecord], batches: Mapping[int, BatchRecord]) -> None:
        self._asked = asked
        self._jobs = {record.id: record for record in records}
        self._batches = batches
        self._below: dict[int, list[int]] = {}
        self._others: dict[int, list[int]] = {}
        below = set()
        for record in records:
            upstream = [node for node in record.depends_on if node in self._jobs or node in batches]
            above = upstream[0] if upstream else record.batch_id
            self._others[record.id] = upstream[1:]
            if above is not None and (above in self._jobs or above in batches):
                self._below.setdefault(above, []).append(record.id)
                below.add(record.id)
        self._roots = [node for node in sorted([*self._jobs, *batches]) if node not in below]

    def lines(self) -> Iterator[str]:
        """The picture, top down."""
        stack = [(node, "", "", 0) for node in reversed(self._roots)]
        while stack:
            node, first, rest, depth = stack.pop()
            yield first + one_line(self._label(node))
            below, hidden = self._visible(node)
            if hidden:
                yield f"{rest}├─ … {hidden} more"
            for nth, child in reversed(list(enumerate(below))):
                last = nth == len(below) - 1
                inner = rest if depth >= _DEEPEST else rest + ("   " if last else "│  ")
                stack.append((child, rest + ("└─ " if last else "├─ "), inner, depth + 1))

    def _visible(self, node: int) -> tuple[list[int], int]:
        """What is drawn below a node: of a batch's many jobs those that are of interest."""
        below = self._below.get(node, [])
        members = [child for child in below if node not in self._jobs[child].depends_on]
        if len(members) <= _MOST_MEMBERS:
            return below, 0
        chosen = sorted(members, key=self._dullness)[:_MOST_MEMBERS]
        return sorted([*chosen, *(child for child in below if child not in set(members))]), len(members) - len(chosen)

    def _dullness(self, job_id: int) -> tuple[bool, int, int]:
        """The one that was asked for, then those with trouble, at work, waiting; then the others."""
        return (job_id != self._asked, _INTERESTING.get(self._jobs[job_id].state, len(_INTERESTING)), job_id)

    def _label(self, node: int) -> str:
        marked = " ← this one" if node == self._asked else ""
        batch = self._batches.get(node)
        if batch is not None:
            name = f" {batch.name}" if batch.name else ""
            bad = "".join(f", {n} {word}" for n, word in ((batch.dead, "dead"), (batch.cancelled, "cancelled")) if n)
            return f"batch {node}{name}: {batch.total - batch.pending} of {batch.total} ended{bad}{marked}"
        others = self._others[node]
        also = f", also after {', '.join(map(str, others[:_MOST_NAMED]))}" if others else ""
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        return f"{node} {self._jobs[node].task} {_state_and_age(self._jobs[node])}{also}{more}{marked}"


def _state_and_age(record: JobRecord) -> str:
    waits = f" (waits for {record.pending})" if record.state == "blocked" else ""
    return f"{record.state} {age(record)}{waits}"
