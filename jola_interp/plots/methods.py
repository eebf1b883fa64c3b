"""Methods beside each other: how much better or worse than JoLA each is, and what heads gain, however chosen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jola_interp.analysis.methods_table import NLL, Contrast, MethodsTable, compare_methods, head_curves
from jola_interp.plots import style
from jola_interp.plots.chart import Chart, Dash, Panel, Rule, Series
from jola_interp.plots.charts import draw
from jola_interp.plots.style import Renderer, require
from jola_interp.runs import Run

Against = Literal["reference", "base"]
Given = MethodsTable | Iterable[Run | str | Path]
"""A table, or the Runs to make it from."""
BETTER, LEVEL, WORSE = "better", "not told apart", "worse"
COLOURS = {BETTER: style.BLUE, LEVEL: style.GREY, WORSE: style.VERMILION}
ONE = "one pair"
BELOW = 0.24
"""How far below its method's line the points of the single pairs stand."""
DASHES: tuple[Dash, ...] = ("solid", "dash", "dot")


def methods(
    table: Given, against: Against = "reference", renderer: Renderer = "plotly", width: float | None = None
) -> Any:
    """Each method's difference to the reference in NLL, best first, and beside it in the task's metric.

    Points are means over pairs of seed and data draw with 95 % intervals, small ones below them single pairs. To the
    right is better, in both panels.

    Args:
        table: what :func:`~jola_interp.analysis.methods_table.compare_methods` gave, or Runs for it.
        against: the ``reference`` method of the table, or the ``base`` model.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: Runs that cannot be compared, no method beside the reference, another ``against``, an unknown
            renderer, or a width that does not go with it.
    """
    require(renderer, width)
    return draw(methods_chart(_table(table), against), renderer, width)


def methods_chart(table: MethodsTable, against: Against = "reference") -> Chart:
    """The chart of :func:`methods`."""
    if against not in get_args(Against):
        raise ValueError(f"against must be one of {', '.join(get_args(Against))}; got {against!r}")
    found = {score: _contrasts(table, score, against) for score in table.scores}
    order = _order(table, found)
    panels = tuple(_panel(table, score, found[score], order, against) for score in table.scores)
    whom = table.reference if against == "reference" else "the base"
    notes = ["To the right is better; bars: 95 %.", *table.notes]
    left_out = [name for name in table.methods if name not in order]
    if left_out:
        notes.append(f"Not drawn, as there is nothing to take a difference from: {', '.join(left_out)}.")
    return Chart((panels,), f"{table.title}: methods against {whom}", tuple(notes), height=0.5)


def heads_gain(table: Given, score: str = NLL, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Gain over the number of heads that act, a line for each way to choose them, with a band over draws.

    A line goes through the means over Runs (pairs of seed and data draw, and draws of the method's own); the band
    reaches from the worst to the best of them. A way that was tried at one size is a dot.

    Args:
        table: what :func:`~jola_interp.analysis.methods_table.compare_methods` gave, or Runs for it.
        score: ``nll`` or the task's metric.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: Runs that cannot be compared, a score that they do not have, no method that acts on heads alone, an
            unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    return draw(heads_gain_chart(_table(table), score), renderer, width)


def heads_gain_chart(table: MethodsTable, score: str = NLL) -> Chart:
    """The chart of :func:`heads_gain`."""
    bands, lines, sizes = [], [], set()
    for place, curve in enumerate(head_curves(table, score)):
        colour, dash = style.LINES[place % len(style.LINES)], DASHES[place // len(style.LINES) % len(DASHES)]
        labels = tuple(f"{heads:g} heads, {runs} Runs" for heads, runs in zip(curve.heads, curve.runs, strict=True))
        bands.append(
            Series(
                curve.heads,
                curve.gain,
                curve.way,
                "band",
                colour,
                low=curve.low,
                high=curve.high,
                opacity=0.2,
                legend=False,
            )
        )
        lines.append(Series(curve.heads, curve.gain, curve.way, "line", colour, labels=labels, dash=dash))
        lines.append(Series(curve.heads, curve.gain, curve.way, "points", colour, labels=labels, legend=False))
        sizes |= {float(heads) for heads in curve.heads if heads > 0}
    panel = Panel(
        (*bands, *lines),
        x_label="heads that act at inference",
        y_label=f"gain over the base in {score.replace('_', ' ')} ({_unit(score)})",
        x_log=True,
        x_ticks=tuple((size, f"{size:.0f}") for size in sorted(sizes)),
        rules=(Rule("y"),),
    )
    notes = ("Lines: means over Runs; bands: from the worst Run to the best. A size is the mean over the Runs.",)
    return Chart(((panel,),), f"{table.title}: what heads gain, by how they were chosen", notes)


# -- inside --------------------------------------------------------------------------------------------------------


def _table(given: Given) -> MethodsTable:
    return given if isinstance(given, MethodsTable) else compare_methods(given)


def _contrasts(table: MethodsTable, score: str, against: Against) -> dict[str, Contrast]:
    standings = [found for found in table.standings if found.score == score]
    if against == "base":
        return {found.method: found.gain for found in standings}
    return {found.method: found.difference for found in standings if found.difference is not None}


def _order(table: MethodsTable, found: dict[str, dict[str, Contrast]]) -> list[str]:
    """Methods by their first score, the best first; those that have only another score come last."""
    means: dict[str, tuple[int, float]] = {}
    for place, contrasts in enumerate(found.values()):
        for name, contrast in contrasts.items():
            means.setdefault(name, (place, -contrast.value))
    if not means:
        raise ValueError(f"no method has a Run in a pair with one of {table.reference}: against='base' needs none")
    if table.reference in table.methods:
        means.setdefault(table.reference, (0, 0.0))
    return sorted(means, key=means.__getitem__)


def _panel(table: MethodsTable, score: str, found: dict[str, Contrast], order: list[str], against: Against) -> Panel:
    whom = f"better than {table.reference} by" if against == "reference" else "gain over the base"
    most = max(len(facts.pairs) for facts in table.methods.values())
    counts = {name: len(table.methods[name].pairs) for name in order}
    names = [name if counts[name] == most else f"{name} ({counts[name]} of {most} pairs)" for name in order]
    series = [*_zero(table, found, order), *(_marks(kind, found, order) for kind in COLOURS)]
    return Panel(
        (_single(found, order), *(marks for marks in series if len(marks.x))),
        title=score.replace("_", " "),
        x_label=f"{whom} ({_unit(score)})",
        y_range=(-0.6, len(order) - 0.4),
        y_ticks=tuple((float(place), name) for place, name in enumerate(names)),
        rules=(Rule("x", dash="solid"),),
        flipped=True,
        horizontal=True,
    )


def _zero(table: MethodsTable, found: dict[str, Contrast], order: list[str]) -> tuple[Series, ...]:
    """The reference itself, where differences are from it."""
    name = table.reference
    if name in found or name not in order:
        return ()
    return (Series(np.zeros(1), np.array([float(order.index(name))]), name, "points", style.GREEN, size=9),)


def _marks(kind: str, found: dict[str, Contrast], order: list[str]) -> Series:
    """The means of one colour, with their intervals."""
    there = [(place, found[name]) for place, name in enumerate(order) if name in found and _kind(found[name]) == kind]
    values, low, high = (np.array([getattr(one, end) for _, one in there]) for end in ("value", "low", "high"))
    places = np.array([place for place, _ in there], dtype=float)
    labels = tuple(f"{order[place]}: over {one.n} {one.over}" for place, one in there)
    return Series(values, places, kind, "points", COLOURS[kind], low=low, high=high, labels=labels, size=9)


def _kind(contrast: Contrast) -> str:
    if contrast.low > 0:
        return BETTER
    return WORSE if contrast.high < 0 else LEVEL


def _single(found: dict[str, Contrast], order: list[str]) -> Series:
    """A small point for each pair of each method that has several."""
    there = [
        (value, place + BELOW, f"{name}: seed {pair[0]}, data {pair[1]}")
        for place, name in enumerate(order)
        if name in found and len(found[name].by_pair) > 1
        for pair, value in found[name].by_pair.items()
    ]
    values, places = (np.array([one[axis] for one in there], dtype=float) for axis in (0, 1))
    labels = tuple(label for _, _, label in there)
    return Series(values, places, ONE, "points", style.GREY, labels=labels, size=5, opacity=0.6)


def _unit(score: str) -> str:
    return "nats per answer token" if score == NLL else "points"
