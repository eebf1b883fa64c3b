"""How a study stands: cells to do, running, failed and finished, and how long it may still take."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from jola_interp.study.cell import Cell
from jola_interp.study.place import STATES, Place, Standing, State, standing

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 12
"""Cells that a status shows one by one."""


@dataclass(frozen=True)
class CellStatus:
    """One cell.

    Attributes:
        number: its place in the study, as ``--cells`` counts.
        cell: what it is.
        state: to do, running, failed or finished.
        seconds: that it took, or has taken so far by its last attempt; None of one that is to do.
        host: where it is running.
        error: why it failed, in a line.
    """

    number: int
    cell: Cell
    state: State
    seconds: float | None = None
    host: str = ""
    error: str = ""


@dataclass(frozen=True)
class Status:
    """All cells of a study at one time.

    Attributes:
        path: the study's directory.
        cells: one each, in the study's order.
        summaries: name of a finished cell to its summary.
        now: seconds since 1970.
    """

    path: Path
    cells: tuple[CellStatus, ...]
    summaries: Mapping[str, Mapping[str, Any]] = field(repr=False)
    now: float

    @property
    def counts(self) -> dict[str, int]:
        """State to number of cells."""
        states = [one.state for one in self.cells]
        return {state: states.count(state) for state in STATES}

    @property
    def seconds_left(self) -> float | None:
        """What is to do or running, each as long as finished cells of its model, task, method and sizes took on average
        (or else all of them), divided among those that are running now, or one; None before the first has finished.
        """
        took: dict[Any, list[float]] = defaultdict(list)
        for one in self.cells:
            if one.state == "finished" and one.seconds is not None:
                took[_kind(one.cell)].append(one.seconds)
        if not took:
            return None
        overall = fmean(second for seconds in took.values() for second in seconds)
        left = 0.0
        for one in self.cells:
            if one.state in ("to do", "running"):
                expected = fmean(took[_kind(one.cell)]) if took.get(_kind(one.cell)) else overall
                left += max(0.0, expected - (one.seconds or 0.0))
        return left / max(1, self.counts["running"])

    def to_frame(self) -> pd.DataFrame:
        """One row a cell: number, name, axes, state, seconds, host, error."""
        import pandas as pd

        rows = [_row(one) for one in self.cells]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        lines = [f"Study {self.path}: {self._sentence()}"]
        lines += [f"  {one.number:>5}  {one.state:8}  {_told(one)}" for one in self._interesting()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = f"<p><b>{html.escape(str(self.path))}</b>: {html.escape(self._sentence())}</p>"
        cells = [(str(one.number), one.state, _told(one)) for one in self._interesting()]
        rows = ["<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in cells]
        return f"{head}<table>{''.join(rows)}</table>" if rows else head

    def _sentence(self) -> str:
        parts = [f"{count} {state}" for state, count in self.counts.items() if count or state == "finished"]
        left = self.seconds_left
        if left:
            parts.append(f"about {duration(left)} left")
        return f"{len(self.cells)} cells: " + ", ".join(parts)

    def _interesting(self) -> Sequence[CellStatus]:
        """What runs and what failed: the rest is a number."""
        return [one for state in ("running", "failed") for one in self.cells if one.state == state][:SHOWN]


def status_of(path: Path, cells: Sequence[Cell], now: float) -> Status:
    """How cells of a study stand now."""
    found = [standing(Place.of(path, cell)) for cell in cells]
    told = tuple(_cell_status(i, cell, one, now) for i, (cell, one) in enumerate(zip(cells, found, strict=True)))
    summaries = {cell.name: one.summary for cell, one in zip(cells, found, strict=True) if one.state == "finished"}
    return Status(path, told, summaries, now)


def duration(seconds: float) -> str:
    """``3 h 20 min``, ``5 min``, ``40 s``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _cell_status(number: int, cell: Cell, found: Standing, now: float) -> CellStatus:
    if found.state == "finished":
        return CellStatus(number, cell, "finished", found.summary.get("seconds"))
    if found.state == "running" and found.holder is not None:
        return CellStatus(number, cell, "running", max(0.0, now - found.holder.since), found.holder.host)
    error = f"{found.error.get('type')}: {found.error.get('message')}" if found.error else ""
    return CellStatus(number, cell, found.state, error=" ".join(error.split()))


def _kind(cell: Cell) -> tuple[Any, ...]:
    return cell.model, cell.task, cell.method, cell.n_train, cell.n_test


def _row(one: CellStatus) -> dict[str, Any]:
    axes = {name: getattr(one.cell, name) for name in ("model", "task", "method", "seed", "draw", "n_train", "labels")}
    told = {"state": one.state, "seconds": one.seconds, "host": one.host, "error": one.error}
    return {"number": one.number, "cell": one.cell.name, **axes, **told}


def _told(one: CellStatus) -> str:
    if one.state == "running":
        return f"{one.cell.name} ({duration(one.seconds or 0)} on {one.host})"
    return f"{one.cell.name}: {one.error}" if one.error else one.cell.name
