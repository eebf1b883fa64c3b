"""Curves of training with matplotlib, at the width of a column or a page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jola_interp.analysis import Losses, Trajectories
from jola_interp.convergence import UNDECIDED
from jola_interp.plots import style
from jola_interp.plots.printed import (
    LINE,
    SMALL,
    TITLE,
    add_axes,
    add_lines,
    in_style,
    new_figure,
    note_lines,
    title_lines,
)

LEFT, RIGHT, AXIS = 0.44, 0.06, 0.32
_NAMES, _UPPER = 0.56, 0.26
"""Inches right of a panel of trajectories for the names, and above it for the axis of Σ gate learning rate."""


@in_style
def draw_trajectories(tables: list[Trajectories], width: float) -> Figure:
    """One panel per kind, side by side on a page and below each other in a column."""
    columns = len(tables) if width > 4.5 else 1
    rows = -(-len(tables) // columns)
    title = title_lines(f"{tables[0].title}: P(open) of every gate", width - LEFT)
    notes = note_lines(style.trajectory_notes(tables), width - LEFT)
    slot = (width - LEFT - RIGHT) / columns
    panel, below = (slot - _NAMES, min(2.1, slot * 0.62)), 0.06 + LINE * len(notes)
    row_height = panel[1] + AXIS + 0.22 + (_UPPER if any(table.travel is not None for table in tables) else 0)
    figure = new_figure(width, below + rows * row_height + 0.15 * len(title) + 0.1)
    for index, table in enumerate(tables):
        row, column = divmod(index, columns)
        bottom = below + (rows - 1 - row) * row_height + AXIS + 0.02
        axes = add_axes(figure, LEFT + column * slot, bottom, *panel)
        _draw_gates(axes, table)
        _draw_reach(axes, table)
        _name_gates(axes, table, panel)
        axes.set_title(f"{table.kind} gates", loc="left", pad=3 if table.travel is None else 3 + 72 * _UPPER)
        axes.set_xlabel("optimiser step")
        axes.tick_params(labelleft=column == 0)
        if column == 0:
            axes.set_ylabel("P(open)")
    add_lines(figure, title, LEFT, figure.get_size_inches()[1] - 0.06, TITLE)
    add_lines(figure, notes, LEFT, below, SMALL)
    return figure


def _draw_gates(axes: Axes, table: Trajectories) -> None:
    for bound in UNDECIDED:
        axes.axhline(bound, color=style.GREY, linewidth=0.5, linestyle=":")
    if table.kept != table.steps[-1]:
        axes.axvline(table.kept, color=style.GREY, linewidth=0.5, linestyle="--")
    lines = [np.column_stack([table.steps, table.values[:, unit]]) for unit in table.shown]
    # Hundreds of thin lines are pixels in PDF and SVG: as vectors they take megabytes.
    grey = LineCollection(lines, colors=style.GREY, alpha=0.3, linewidths=0.35, rasterized=len(lines) > 100)
    axes.add_collection(grey)
    for rank, unit in reversed(list(enumerate(table.top))):
        axes.plot(table.steps, table.values[:, unit], color=_colour(rank), linewidth=1.1, label=table.labels[unit])
    _step_axis(axes, table.steps)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def _draw_reach(axes: Axes, table: Trajectories) -> None:
    """The band of P(open) that a gate could have reached, and Σ gate learning rate on an axis above the panel."""
    if table.lowest is None or table.highest is None:
        return
    axes.fill_between(table.steps, table.lowest, table.highest, color=style.SKY, alpha=0.16, linewidth=0, zorder=0)
    low, high = axes.get_xlim()
    places = [place for place in style.tick_places(int(high) + 1, 6) if place >= low]
    upper = axes.secondary_xaxis("top")
    upper.set_xticks(places, [f"{value:.3g}" for value in table.travel_at(places)])
    upper.set_xlabel("Σ gate learning rate", fontsize=SMALL, labelpad=2.5)


def _name_gates(axes: Axes, table: Trajectories, size: tuple[float, float]) -> None:
    """Labels right of the panel, moved apart, each tied to the end of its line."""
    ends = [float(table.values[-1, unit]) for unit in table.top]
    places = style.spread(ends, 0.105 / size[1], 0.0, 1.0)
    beside = axes.get_yaxis_transform()  # x in fractions of the panel, y in data
    for rank, (unit, end, place) in enumerate(zip(table.top, ends, places, strict=True)):
        line: dict[str, Any] = {"color": _colour(rank), "linewidth": 0.8, "clip_on": False}
        axes.plot([1.0, 1 + 0.11 / size[0]], [end, place], transform=beside, scalex=False, scaley=False, **line)
        axes.text(1 + 0.14 / size[0], place, table.labels[unit], transform=beside, fontsize=SMALL, va="center_baseline")


@in_style
def draw_losses(table: Losses, width: float) -> Figure:
    """Cross-entropy and penalty above; Σ P(open) below; λ at the bottom if it moves. One step axis for all."""
    parts: list[tuple[Callable[[Axes, Losses], None], float]] = [(_draw_ce, 1.5)]
    if table.opens:
        parts.append((_draw_opens, 0.9))
    if table.weights_move:
        parts.append((_draw_weights, 0.7))
    wide, gap = width > 4.5, 0.14
    legends = [0.0 if wide else 0.13 * rows for rows in (3, 1, 1)[: len(parts)]]  # above the panel in a column
    right = 1.6 if wide else RIGHT
    title, notes = title_lines(f"{table.title}: training", width - LEFT), note_lines(table.notes, width - LEFT)
    below = 0.06 + LINE * len(notes)
    whole = sum(height for _, height in parts) + gap * (len(parts) - 1) + sum(legends)
    figure = new_figure(width, below + AXIS + whole + 0.15 * len(title) + 0.14)
    top = below + AXIS + whole + 0.02
    for index, (draw, height) in enumerate(parts):
        top -= legends[index]
        axes = add_axes(figure, LEFT, top - height, width - LEFT - right, height)
        draw(axes, table)
        _finish(axes, table, wide, last=index == len(parts) - 1)
        top -= height + gap
    add_lines(figure, title, LEFT, figure.get_size_inches()[1] - 0.06, TITLE)
    add_lines(figure, notes, LEFT, below, SMALL)
    return figure


def _draw_ce(axes: Axes, table: Losses) -> None:
    single = table.window == 1
    name = "train CE" if single else "train CE, each step"
    axes.plot(table.steps, table.ce, color=style.SKY, linewidth=0.6, alpha=1 if single else 0.6, label=name)
    if not single:
        smooth = f"train CE, mean of {table.window} steps"
        axes.plot(table.steps, table.smooth, color=style.SKY, linewidth=1.3, label=smooth)
    if table.opens:
        axes.plot(table.steps, table.penalty, color=style.PURPLE, linewidth=1.1, label="penalty (weighted)")
    if len(table.validation_steps):
        line: dict[str, Any] = {
            "color": style.VERMILION,
            "linewidth": 0.9,
            "linestyle": "--",
            "marker": "D",
            "markersize": 3,
        }
        axes.plot(table.validation_steps, table.validation_ce, label="validation CE", clip_on=False, **line)
    if table.best is not None:
        ring: dict[str, Any] = {
            "marker": "o",
            "markersize": 7,
            "markerfacecolor": "none",
            "markeredgecolor": style.VERMILION,
        }
        at = slice(table.best, table.best + 1)
        text = "best epoch (kept)" if table.kept else "best epoch"
        axes.plot(
            table.validation_steps[at], table.validation_ce[at], linestyle="none", label=text, clip_on=False, **ring
        )
    axes.set_ylabel("loss (nats per token)")
    axes.set_ylim(bottom=0)


def _draw_opens(axes: Axes, table: Losses) -> None:
    for kind, values in table.opens.items():
        axes.plot(table.steps, values, color=style.KINDS[kind], linewidth=1.1, label=f"Σ P(open), {kind}")
    axes.set_ylabel("Σ P(open)")
    axes.set_ylim(0, table.gates * 1.03)


def _draw_weights(axes: Axes, table: Losses) -> None:
    for kind, values in table.weights.items():
        axes.plot(table.steps, values, color=style.KINDS[kind], linewidth=1.1, linestyle=":", label=f"λ, {kind}")
    axes.set_ylabel("λ")
    axes.set_ylim(bottom=0)


def _finish(axes: Axes, table: Losses, wide: bool, last: bool) -> None:
    """Steps, grid and legend: beside the panel on a page, above it in a column."""
    _step_axis(axes, np.concatenate([table.steps, table.validation_steps]))
    axes.grid(True)
    axes.set_axisbelow(True)
    if table.best is not None:
        axes.axvline(int(table.validation_steps[table.best]), color=style.GREY, linewidth=0.5, linestyle="--")
    axes.tick_params(labelbottom=last)
    if last:
        axes.set_xlabel("optimiser step")
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0}
    if not wide:
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2, "ncols": 2}
    axes.legend(**place, handlelength=1.6, columnspacing=1.0, labelspacing=0.3, borderpad=0)


def _step_axis(axes: Axes, steps: np.ndarray) -> None:
    low, high = float(np.min(steps)), float(np.max(steps))
    pad = 0.01 * (high - low) or 0.5
    axes.set_xlim(low - pad, high + pad)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _colour(rank: int) -> str:
    return style.LINES[rank % len(style.LINES)]
