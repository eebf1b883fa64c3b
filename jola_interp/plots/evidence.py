"""The controls panel: what an edit gains beside what it has to beat, a line each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jola_interp import analysis
from jola_interp.analysis import Control, Controls
from jola_interp.plots import style
from jola_interp.plots.style import Renderer, require

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jola_interp.runs import Run

AXIS = "gain (nats per answer token, test rows)"
COLOURS = {True: style.BLUE, False: style.ORANGE}
"""What is in question, and what it has to beat."""
_PANEL, _NAMES, _ROW = 430, 170, 22
"""Pixels: the panel, the names left of it, a line."""


@dataclass(frozen=True)
class Line:
    """One line of the panel: ``place`` counts lines from the top, headings among them."""

    place: int
    name: str
    rows: tuple[Control, ...]

    @property
    def asked(self) -> bool:
        """Whether it is what its group puts in question."""
        return self.rows[0].asked

    @property
    def gains(self) -> list[float]:
        """Of all its rows."""
        return [row.gain for row in self.rows]

    @property
    def arms(self) -> tuple[list[float], list[float]]:
        """How far the intervals reach below and above the gains; 0 where there is none."""
        below = [0.0 if math.isnan(row.low) else row.gain - row.low for row in self.rows]
        return below, [0.0 if math.isnan(row.high) else row.high - row.gain for row in self.rows]


@dataclass(frozen=True)
class Block:
    """A group of lines under a heading."""

    place: int
    name: str
    lines: tuple[Line, ...]

    @property
    def reference(self) -> float | None:
        """The gain in question; None where the group has none, or nothing beside it."""
        return next((line.gains[0] for line in self.lines if line.asked and len(self.lines) > 1), None)

    @property
    def span(self) -> tuple[float, float]:
        """From above its first line to below its last."""
        return self.lines[0].place - 0.45, self.lines[-1].place + 0.45


def controls(run: Run, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Every gain in the evidence card of a Run: the edit, random directions, refits, rivals, trainings on nothing.

    A line each, random sets and directions as dots on one; bars are 95 % intervals over the test rows, and the dashed
    line is the gain in question in each group.

    Args:
        run: a Run with an ``evidence.json`` (:func:`jola_interp.evidence_card` makes one).
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: no card, or none of its parts is about a gain, or an unknown renderer.
    """
    require(renderer, width)
    table = analysis.controls(run)
    if renderer == "plotly":
        return _on_screen(table)
    from jola_interp.plots.printed import in_style

    return in_style(_on_paper)(table, width or 6.75)


def _blocks(table: Controls) -> list[Block]:
    """Groups below each other, each under a line for its heading."""
    found, place = [], 0
    for group, rows in table.groups.items():
        lines = tuple(Line(place + i, line[0].what, line) for i, line in enumerate(rows, start=1))
        found.append(Block(place, group, lines))
        place += 1 + len(lines)
    return found


def _lines(blocks: list[Block]) -> Iterator[Line]:
    return (line for block in blocks for line in block.lines)


def _x_range(table: Controls) -> list[float]:
    low, high = table.range
    pad = 0.04 * (high - low) or 1.0
    return [low - pad, high + pad]


def _last(blocks: list[Block]) -> int:
    return blocks[-1].lines[-1].place


# -- on screen -----------------------------------------------------------------------------------------------------


def _on_screen(table: Controls) -> go.Figure:
    import plotly.graph_objects as go

    from jola_interp.plots.screen import add_text, escaped, lay_out

    figure, blocks = go.Figure(), _blocks(table)
    size = (_NAMES + _PANEL, _ROW * (_last(blocks) + 1))
    figure.add_shape(_screen_rule(0.0, (-0.5, _last(blocks) + 0.5), "solid"))
    for block in blocks:
        add_text(figure, f"<b>{escaped(block.name)}</b>", (0, block.place), yref="y", yanchor="middle")
        if block.reference is not None:
            figure.add_shape(_screen_rule(block.reference, block.span, "dash"))
    for line in _lines(blocks):
        figure.add_trace(_screen_marks(line))
    lay_out(figure, size, f"{table.title}: controls", table.notes, showlegend=False, plot_bgcolor="rgba(0,0,0,0)")
    figure.update_layout(xaxis=_screen_gains(table, size[0]), yaxis=_screen_names(blocks))
    return figure


def _screen_marks(line: Line) -> go.Scatter:
    import plotly.graph_objects as go

    from jola_interp.plots.screen import escaped

    colour, many = COLOURS[line.asked], len(line.rows) > 1
    below, above = line.arms
    bars = {"type": "data", "array": above, "arrayminus": below, "color": colour, "thickness": 2, "width": 0}
    ends = [(row.low, row.high) for row in line.rows]
    hover = f"<b>{escaped(line.name)}</b><br>gain %{{x:+.3f}}"
    if any(above):
        hover += "<br>95 % interval %{customdata[0]:+.3f} to %{customdata[1]:+.3f}"
    return go.Scatter(
        x=line.gains, y=[line.place] * len(line.rows), name=line.name, mode="markers", customdata=ends,
        marker={"color": colour, "size": 8 if many else 10, "opacity": 0.55 if many else 1},
        error_x=bars if any(above) else None, hovertemplate=hover + "<extra></extra>",
    )  # fmt: skip


def _screen_rule(x: float, span: tuple[float, float], dash: str) -> dict[str, Any]:
    line = {
        "color": style.GREY if dash == "solid" else style.BLUE,
        "width": 1 if dash == "solid" else 1.5,
        "dash": dash,
    }
    return {"type": "line", "x0": x, "x1": x, "y0": span[0], "y1": span[1], "line": line, "layer": "below"}


def _screen_gains(table: Controls, width: float) -> dict[str, Any]:
    return {
        "domain": [_NAMES / width, 1], "range": _x_range(table), "title": {"text": AXIS, "standoff": 7},
        "gridcolor": "rgba(128,128,128,0.18)", "zeroline": False, "ticks": "outside", "ticklen": 3,
        "tickfont": {"size": 11}, "linecolor": style.GREY, "showline": True,
    }  # fmt: skip


def _screen_names(blocks: list[Block]) -> dict[str, Any]:
    from jola_interp.plots.screen import escaped

    return {
        "range": [_last(blocks) + 0.6, -0.6], "tickvals": [line.place for line in _lines(blocks)],
        "ticktext": [escaped(line.name) for line in _lines(blocks)], "tickfont": {"size": 12},
        "showgrid": False, "zeroline": False, "fixedrange": True,
    }  # fmt: skip


# -- on paper ------------------------------------------------------------------------------------------------------


def _on_paper(table: Controls, width: float) -> Figure:
    from jola_interp.plots import printed

    blocks = _blocks(table)
    names = 1.32 if width < 4.5 else 1.6  # inches left of the panel
    row = 0.142
    title = printed.title_lines(f"{table.title}: controls", width - 0.1)
    notes = printed.note_lines(table.notes, width - 0.1)
    below, height = 0.06 + printed.LINE * len(notes), row * (_last(blocks) + 1.2)
    figure = printed.new_figure(width, below + 0.34 + height + 0.15 * len(title) + 0.14)
    axes = printed.add_axes(figure, names, below + 0.34, width - names - 0.06, height)
    axes.axvline(0, color=style.GREY, linewidth=0.5)
    for block in blocks:
        _printed_block(axes, block, -(names - 0.05) / (width - names - 0.06))
    _printed_axes(axes, table, blocks)
    printed.add_lines(figure, title, 0.05, figure.get_size_inches()[1] - 0.06, printed.TITLE)
    printed.add_lines(figure, notes, 0.05, below, printed.SMALL)
    return figure


def _printed_block(axes: Axes, block: Block, left: float) -> None:
    """Heading at the left edge of the figure (in widths of the panel), lines, and the gain in question."""
    from jola_interp.plots.printed import SMALL

    beside = axes.get_yaxis_transform()  # x in fractions of the panel, y in data
    axes.text(
        left, block.place, block.name, transform=beside, fontsize=SMALL, weight="bold", va="center", parse_math=False
    )
    if block.reference is not None:
        span: Any = block.span
        axes.vlines(block.reference, *span, color=style.BLUE, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
    for line in block.lines:
        many = len(line.rows) > 1
        axes.errorbar(
            line.gains, [line.place] * len(line.rows), xerr=line.arms, fmt="o", label=line.name, elinewidth=1.0,
            color=COLOURS[line.asked], markersize=3.2, markeredgewidth=0, alpha=0.55 if many else 1,
        )  # fmt: skip


def _printed_axes(axes: Axes, table: Controls, blocks: list[Block]) -> None:
    axes.set_xlim(*_x_range(table))
    axes.set_ylim(_last(blocks) + 0.6, -0.6)
    axes.set_yticks([line.place for line in _lines(blocks)], [line.name for line in _lines(blocks)])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel(AXIS)
