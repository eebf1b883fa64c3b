"""Studies as charts: intervals beside their nulls, transfer against overlap, and curves over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jola_interp.analysis.offset_cosines import OffsetCosines
from jola_interp.analysis.overlaps import Overlaps
from jola_interp.analysis.stability import KUNCHEVA, LARGEST, NOGUEIRA, SELECTED, Stability, StabilityScore
from jola_interp.analysis.study_curves import StudyCurves
from jola_interp.analysis.transfer import Transfer
from jola_interp.plots import style
from jola_interp.plots.chart import Chart, Dash, Panel, Rule, Series
from jola_interp.plots.charts import draw
from jola_interp.plots.studies import NAMES, several
from jola_interp.plots.style import Renderer, require

RANDOM = "random heads, as many in every layer"
WAYS = {SELECTED: style.BLUE, LARGEST: style.ORANGE}
TITLES = {NOGUEIRA: "Nogueira's index", KUNCHEVA: "Kuncheva's index (equal sizes)"}
SAME, OTHER = "other seeds of the task", "other tasks"
DASHES: tuple[Dash, ...] = ("solid", "dash", "dot")
THICK = 0.26
"""Of a bar, in rows."""


def overlap_summary(table: Overlaps, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Overlap above chance between seeds of a task and between tasks, under every rule and index of a table.

    Args:
        table: what :func:`~jola_interp.analysis.overlaps.overlaps` gave.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    return draw(overlap_chart(table), renderer, width)


def stability_bars(table: Stability, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Stability of the selection of each task beside that of the largest vectors and of random heads.

    Args:
        table: what :func:`~jola_interp.analysis.stability.stability` gave.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    return draw(stability_chart(table), renderer, width)


def offset_agreement(table: OffsetCosines, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Cosine of the offsets of each task with those of its other seeds and of other tasks, beside other heads'.

    Args:
        table: what :func:`~jola_interp.analysis.offset_cosines.offset_cosines` gave.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    return draw(cosine_chart(table), renderer, width)


def transfer_against_overlap(table: Transfer, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Relative gain over how alike two tasks are, a point for each ordered pair of tasks.

    Args:
        table: what :func:`~jola_interp.analysis.transfer.transfer` gave, with overlaps.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: a table without overlaps, an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    return draw(transfer_chart(table), renderer, width)


def study_curves(
    table: StudyCurves,
    x_label: str = "",
    y_label: str = "",
    x_log: bool = False,
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """Means over seeds with their bands, and every seed as a point.

    Args:
        table: what :func:`~jola_interp.analysis.study_curves.curves` gave.
        x_label, y_label: with units; "" is the name of the column.
        x_log: logarithmic places (all of them must be above 0).
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: places that have none on a logarithmic axis, an unknown renderer, or a width that does not go with
            it.
    """
    require(renderer, width)
    return draw(curves_chart(table, x_label, y_label, x_log), renderer, width)


# -- charts --------------------------------------------------------------------------------------------------------


def overlap_chart(table: Overlaps) -> Chart:
    """The chart of :func:`overlap_summary`."""
    rows = [
        f"{NAMES[one.index]}, {one.rule}" if one.index != "weighted" else NAMES[one.index] for one in table.matrices
    ]
    series = []
    for name, attribute, colour, shift in ((SAME, "within", style.BLUE, -0.14), (OTHER, "between", style.ORANGE, 0.14)):
        found = [getattr(matrix, attribute) for matrix in table.matrices]
        labels = tuple(f"p = {one.p:.2g}, {one.n} tasks" for one in found)
        values = [[getattr(one, end) for one in found] for end in ("value", "low", "high")]
        series.append(_points(name, values, np.arange(len(rows)) + shift, colour, labels))
    panel = _listed(tuple(series), rows, "overlap − chance", rules=(Rule("x", dash="solid"),))
    notes = (
        "Means over tasks and pairs of tasks; bars: 95 %, jackknife over tasks. Rules select sets of other sizes, and "
        "indices of sets of other sizes have other reaches: compare colours within a line, not lines.",
        *table.notes,
    )
    return Chart(((panel,),), "Overlap of selected heads above chance", notes, height=0.5)


def stability_chart(table: Stability) -> Chart:
    """The chart of :func:`stability_bars`: a panel for each index."""
    kept, told = several(table)
    ranks = [index for index in table.indices if index.startswith("rank") and index != "rank size"]
    panels = [_stability_panel(table, kept, (index,), TITLES[index]) for index in (NOGUEIRA, KUNCHEVA)]
    panels += [_stability_panel(table, kept, (index, "rank size"), f"rank correlation, {index[5:]}") for index in ranks]
    notes = ("1: the same heads in every run.", *told, *table.notes)
    if ranks and any(score.index == "rank size" for score in table.scores):
        notes = (*notes, "Rank correlations: of log α; orange: of the sizes of the vectors of both kinds.")
    rows = tuple(tuple(panels[i : i + 2]) for i in range(0, len(panels), 2))
    return Chart(rows, "Do runs of a task select the same heads?", notes, height=max(0.5, 0.11 * len(kept)))


def cosine_chart(table: OffsetCosines) -> Chart:
    """The chart of :func:`offset_agreement`."""
    rows, places = list(table.groups), np.arange(len(table.groups), dtype=float)
    own = [np.diag(one) for one in (table.value, table.low, table.high)]
    names = tuple(f"{pairs} pairs of runs, {_count(heads)} heads"
                  for pairs, heads in zip(np.diag(table.pairs), np.diag(table.heads), strict=True))  # fmt: skip
    series = [_points(SAME, own, places - 0.2, style.BLUE, names)]
    if table.shuffled is not None:
        series.append(
            _points("the task under shuffled labels", [table.shuffled], places[: table.tasks], style.PURPLE, ())
        )
    at = [(i, j) for i in range(len(rows)) for j in range(table.tasks) if i != j]  # shuffled runs of all tasks: a row
    if at:
        values = [[table.value[i, j] for i, j in at]]
        spread = [places[i] + 0.25 * ((j + 0.5) / len(rows) - 0.5) + 0.06 for i, j in at]
        labels = tuple(f"{rows[i]} and {rows[j]}: p = {table.p[i, j]:.2g}" for i, j in at)
        series.append(_points(OTHER, values, np.array(spread), style.ORANGE, labels, size=5))
    chance = [np.diag(one) for one in (table.chance, table.chance_low, table.chance_high)]
    series.append(_points("other heads (chance)", chance, places + 0.34, style.GREY, ()))
    panel = _listed(tuple(series), rows, "cosine of offsets, heads open in both", (Rule("x", dash="solid"),))
    notes = (
        "Blue bars: 95 %, jackknife over runs; grey: other heads' offsets for the task's own pairs, 95 % of draws.",
        *table.notes,
        table.sentence(),
    )
    return Chart(((panel,),), "Do trainings write the same offsets?", notes, height=0.6)


def transfer_chart(table: Transfer) -> Chart:
    """The chart of :func:`transfer_against_overlap`."""
    if table.overlap is None:
        raise ValueError("this table holds no overlap: transfer(frame, overlap, tasks) adds it")
    at = [(i, j) for i in range(len(table.tasks)) for j in range(len(table.tasks)) if i != j]
    x, y = (np.array([float(one[place]) for place in at]) for one in (table.overlap, table.gain))
    ends = {"95 % from": table.low, "to": table.high}
    points = Series(
        x,
        y,
        "an ordered pair of tasks",
        "points",
        hover={name: np.array([float(one[place]) for place in at]) for name, one in ends.items()},
        labels=tuple(f"{table.tasks[i]} → {table.tasks[j]}" for i, j in at),
        size=7,
        opacity=0.8,
    )
    panel = Panel(
        (points,),
        x_label=table.overlap_name,
        y_label="gain on the target (share of its own edit's)",
        rules=(Rule("y", 0.0, "solid"), Rule("y", 1.0)),
    )
    notes = (*table.notes, "Points share tasks: they are not so many findings.")
    return Chart(((panel,),), "Does what two tasks share say what carries over?", notes)


def curves_chart(table: StudyCurves, x_label: str = "", y_label: str = "", x_log: bool = False) -> Chart:
    """The chart of :func:`study_curves`."""
    places = np.unique(np.concatenate([line.x for line in table.lines]))
    if x_log and places[0] <= 0:
        raise ValueError(f"x_log: {table.x} = {places[0]:g} has no place on a logarithmic axis")
    bands, lines, points = [], [], []
    for place, line in enumerate(table.lines):
        colour, dash = style.LINES[place % len(style.LINES)], DASHES[place // len(style.LINES) % len(DASHES)]
        name = line.name or "mean"
        labels = tuple(f"{name}: {seeds} seeds" for seeds in line.seeds)
        look: dict[str, Any] = {"low": line.low, "high": line.high, "opacity": 0.2, "legend": False}
        bands.append(Series(line.x, line.mean, name, "band", colour, **look))
        lines.append(Series(line.x, line.mean, name, "line", colour, labels=labels, dash=dash))
        each: dict[str, Any] = {"labels": line.points_seed, "size": 4, "opacity": 0.6, "legend": False}
        points.append(Series(line.points_x, line.points_y, name, "points", colour, **each))
    panel = Panel(
        (*bands, *points, *lines),
        x_label=x_label or table.x,
        y_label=y_label or table.y,
        x_log=x_log,
        x_ticks=tuple((float(x), f"{x:g}") for x in places) if len(places) <= 8 else (),
    )
    return Chart(((panel,),), f"{y_label or table.y} over {x_label or table.x}", table.notes)


# -- panels --------------------------------------------------------------------------------------------------------


def _stability_panel(table: Stability, kept: Sequence[int], indices: Sequence[str], title: str) -> Panel:
    """Bars of an index by task, under each what chance gives; a second index is that of the largest vectors, where it
    has one of its own."""
    series: list[Series] = []
    chance: list[tuple[float, StabilityScore]] = []
    groups = [table.groups[i] for i in kept]
    for place, (way, colour) in enumerate(WAYS.items()):
        index = indices[min(place, len(indices) - 1)]
        found = [(row, score) for row, name in enumerate(groups) if (score := _score(table, name, index, way))]
        if found:
            rows = np.array([row for row, _ in found]) + 0.36 * (place - 0.6)
            values = [[getattr(score, end) for _, score in found] for end in ("value", "low", "high")]
            labels = tuple(f"p = {score.p:.2g}, {score.runs} runs" for _, score in found)
            series.append(_points(way, values, rows, colour, labels, look="bars", size=THICK))
            chance += [(row + 0.17, score) for row, (_, score) in zip(rows, found, strict=True)]
    values = [[getattr(score, f"chance{end}") for _, score in chance] for end in ("", "_low", "_high")]
    series.append(_points(RANDOM, values, [row for row, _ in chance], style.GREY, (), size=5))
    names = [f"{table.groups[i]} ({len(table.sizes[i])} runs)" for i in kept]
    return _listed(tuple(series), names, "stability", (Rule("x", dash="solid"),), title)


def _score(table: Stability, group: str, index: str, way: str = SELECTED) -> StabilityScore | None:
    found = (one for one in table.scores if (one.group, one.index, one.way) == (group, index, way))
    return next(found, None)


def _points(
    name: str,
    values: Sequence[Any],
    places: Any,
    colour: str,
    labels: tuple[str, ...],
    look: Any = "points",
    size: float = 8,
) -> Series:
    """Values, with the ends of their intervals where there are any, lying in rows."""
    x, *ends = (np.asarray(one, dtype=float) for one in values)
    low, high = ends or (None, None)
    return Series(x, np.asarray(places, float), name, look, colour, low=low, high=high, labels=labels, size=size)


def _listed(
    series: tuple[Series, ...], rows: Sequence[str], x_label: str, rules: tuple[Rule, ...], title: str = ""
) -> Panel:
    """A panel of rows, the first at the top."""
    return Panel(
        series,
        title=title,
        x_label=x_label,
        y_range=(-0.6, len(rows) - 0.4),
        y_ticks=tuple((float(place), name) for place, name in enumerate(rows)),
        rules=rules,
        flipped=True,
        horizontal=True,
    )


def _count(value: float) -> str:
    return "no" if np.isnan(value) else f"{value:.0f}"
