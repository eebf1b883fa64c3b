"""Panels of lines, points, bars, bands and arrows with plotly."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float, Int

from jola_interp.plots import screen, style
from jola_interp.plots.chart import Chart, Panel, Rule, Series
from jola_interp.plots.chart_places import (
    LEADING,
    NOTHING,
    PALE,
    Frame,
    Grid,
    Ruler,
    arrange,
    beside,
    em,
    folded,
    named_axis,
    names_of,
)
from jola_interp.plots.screen import axes_of, lay_out

RULER = Ruler(small=11, label=12, pad=6, gap=18, left=screen.LEFT, below=screen.BOTTOM, names=190, tallest=1500)
WIDTHS = {1: 520, 2: 350, 3: 270, 4: 215}
"""Pixels of a panel, by the panels in a row; 185 where there are more."""
MANY = 5000
"""Points of a series that are drawn by the graphics card from here on."""
_FORMAT = ":.5~g"
_AXIS = {
    "gridcolor": "rgba(128,128,128,0.18)",
    "zeroline": False,
    "ticks": "outside",
    "ticklen": 3,
    "tickfont": {"size": RULER.small},
    "linecolor": style.GREY,
    "showline": True,
    "exponentformat": "power",
}
_ABOVE = 20
"""Pixels of the upper margin that the titles of the first row may take."""


def draw_chart(chart: Chart) -> go.Figure:
    """All panels of a chart, one legend at the right."""
    columns = len(chart.rows[0])
    grid = arrange(chart.rows, chart.height, RULER, WIDTHS.get(columns, 185))
    figure, entries, raised = go.Figure(), chart.legend, any(map(_bars_above, chart.panels))
    title = folded(chart.title, (grid.size[0] - RULER.left) / 15)
    size = _area(grid, len(title))
    for number, frame in enumerate(grid.frames, start=1):
        axes = axes_of(number), axes_of(len(grid.frames) + number)
        _lay_axes(figure, frame, axes, size)
        _draw_rules(figure, frame, axes[0])
        if raised:
            _draw_edges(figure, frame, axes[0])
        for series in frame.panel.everything:
            on = axes[0][0], axes[1 if series in frame.panel.second else 0][1]
            _draw_series(figure, frame.panel, series, on, first=series in entries)
            entries = [entry for entry in entries if entry is not series]  # a series may stand in several panels
        _draw_names(figure, frame, axes)
    _lay_out(figure, chart, size, title)
    return figure


def _text(text: str) -> str:
    """As plotly shows it: < and & are no markup, and a pair of dollar signs is no formula."""
    return screen.escaped(text).replace("$", "&#36;").replace("\n", "<br>")


def _ink(series: Series) -> str:
    """The colour of a series; ink is a grey that is seen on white paper and on black."""
    return "#666666" if series.colour == style.INK else series.colour


def _faded(colour: str, opacity: float) -> str:
    """A colour with its opacity written into it, where nothing else can carry it."""
    if opacity == 1 or not re.fullmatch("#[0-9a-fA-F]{6}", colour):
        return colour
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def _lines(lines: list[str]) -> str:
    return "<br>".join(map(_text, lines))


# -- places --------------------------------------------------------------------------------------------------------


def _area(grid: Grid, title_lines: int) -> tuple[float, float]:
    """Pixels between the margins; a title of more than one line takes the rest from its upper end."""
    top = grid.size[1] - grid.frames[0].bottom - grid.frames[0].height
    more = max(title_lines - 1, 0) * 15 * LEADING
    return grid.size[0] - RULER.left, grid.size[1] - RULER.below - min(top, _ABOVE) + more


def _lay_out(figure: go.Figure, chart: Chart, size: tuple[float, float], title: list[str]) -> None:
    names = [folded(series.name, 22) for series in chart.legend]
    widest = max((em(line) for lines in names for line in lines), default=0.0)
    right = widest * 12 + 66 if names else screen.RIGHT
    legend = {
        "x": 1 + 14 / size[0], "xanchor": "left", "y": 1, "yanchor": "top", "bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12}, "traceorder": "normal",
    }  # fmt: skip
    more = {"showlegend": bool(names), "legend": legend, "barmode": "overlay", "plot_bgcolor": "rgba(0,0,0,0)"}
    lay_out(figure, size, chart.title, chart.notes, right=right, **more)
    if len(title) > 1:
        y = 1 - 12 / figure.layout.height
        figure.layout.title.update(text=_lines(title), yanchor="top", y=y)
    else:
        figure.layout.title.text = _text(chart.title)


def _lay_axes(
    figure: go.Figure, frame: Frame, axes: tuple[tuple[str, str], tuple[str, str]], size: tuple[float, float]
) -> None:
    panel, words, (x_axis, y_axis), second = frame.panel, frame.words, axes[0], axes[1][1]
    left, bottom = (frame.left - RULER.left) / size[0], (frame.bottom - RULER.below) / size[1]
    # At most 1, but for rounding.
    right, top = min(left + frame.width / size[0], 1.0), min(bottom + frame.height / size[1], 1.0)
    figure.layout[x_axis.replace("x", "xaxis")] = {
        **_AXIS, **_scale(frame.x_range, panel.x_log), **_ticks(frame, "x"),
        "domain": [left, right], "anchor": y_axis, "title": _title(words.x_label),
        "tickangle": -90 if words.upright else 0,
    }  # fmt: skip
    figure.layout[y_axis.replace("y", "yaxis")] = {
        **_AXIS, **_scale(frame.y_range, panel.y_log, panel.flipped), **_ticks(frame, "y"),
        "domain": [bottom, top], "anchor": x_axis, "title": _title(words.y_label if words.y_named else []),
        "showticklabels": words.y_named,
        **({"scaleanchor": x_axis, "scaleratio": 1} if panel.square else {}),
    }  # fmt: skip
    if panel.second:
        figure.layout[second.replace("y", "yaxis")] = {
            **_AXIS, **_scale(frame.second_range, False), "overlaying": y_axis, "side": "right", "anchor": x_axis,
            "showgrid": False, "title": _title(words.second_label), "nticks": int(frame.height / 32),
            "tickmode": "auto",
        }  # fmt: skip
    if words.title:
        screen.add_text(figure, _lines(words.title), (left, top), yshift=3, align="left")
    if panel.empty:
        at = {"xref": f"{x_axis} domain", "yref": f"{y_axis} domain", "xanchor": "center", "yanchor": "middle"}
        screen.add_text(figure, NOTHING, (0.5, 0.5), opacity=0.6, **at)


def _scale(ends: tuple[float, float], log: bool, flipped: bool = False) -> dict[str, Any]:
    """Type and range of an axis; plotly counts logarithmic ones in decades."""
    low, high = (float(np.log10(end)) for end in ends) if log else ends
    # Numbers at logarithmic axes are drawn a quarter larger than asked for.
    size = {"tickfont": {"size": RULER.small / 1.25}} if log else {}
    return {"type": "log" if log else "linear", "range": [high, low] if flipped else [low, high], **size}


def _ticks(frame: Frame, axis: Literal["x", "y"]) -> dict[str, Any]:
    """The text of an axis in place of numbers, or how many numbers; an empty panel has no grid."""
    panel = frame.panel
    given, kept = (panel.x_ticks, frame.words.x_ticks) if axis == "x" else (panel.y_ticks, frame.words.y_ticks)
    if given:
        texts = [_text(text) for _, text in kept]
        return {"tickvals": [place for place, _ in kept], "ticktext": texts, "showgrid": False}
    (low, high), most = (frame.x_range, frame.width / 45) if axis == "x" else (frame.y_range, frame.height / 32)
    step = {"dtick": 1} if frame.whole(axis) and high - low <= most else {}
    return {"nticks": max(int(most), 2), "showgrid": not panel.empty, **step}


def _title(lines: list[str]) -> dict[str, Any]:
    return {"text": _lines(lines), "standoff": 7, "font": {"size": RULER.label}}


# -- series --------------------------------------------------------------------------------------------------------


def _draw_series(figure: go.Figure, panel: Panel, series: Series, axes: tuple[str, str], first: bool) -> None:
    make = {"line": _line, "points": _points, "bars": _bars, "band": _band, "arrows": _arrows}[series.look]
    trace = make(panel, series)
    if _bars_above(panel) and trace.type != "scattergl":
        trace.zorder = panel.everything.index(series)
    trace.update(name=_text(series.name), legendgroup=series.name, xaxis=axes[0], yaxis=axes[1])
    faint = series.look == "points" and (trace.marker.size < 5 or series.opacity < 0.5)
    if first and faint:
        figure.add_trace(_entry(series, axes))
    figure.add_trace(trace.update(showlegend=first and not faint))


def _entry(series: Series, axes: tuple[str, str]) -> go.Scatter:
    """What stands in the legend for points that are too small or too pale to be seen there."""
    marker = {"color": _ink(series), "size": 6, "opacity": 0.8}
    entry = go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=_text(series.name), showlegend=True)
    return entry.update(legendgroup=series.name, xaxis=axes[0], yaxis=axes[1], hoverinfo="skip")


def _bars_above(panel: Panel) -> bool:
    """Whether bars come after what is no bar; plotly draws them below it unless told otherwise."""
    looks = [series.look for series in panel.everything]
    return "bars" in looks and sorted(looks, key=lambda look: look != "bars") != looks


def _line(panel: Panel, series: Series) -> go.Scatter:
    line = {"color": _ink(series), "width": series.size or 2, "dash": series.dash}
    trace = go.Scatter(x=series.x, y=series.y, mode="lines", line=line, opacity=series.opacity)
    if series.alone.any():
        sizes = np.where(series.alone, 2.5 * (series.size or 2), 0)
        dots = {"size": sizes, "color": _ink(series), "opacity": 1, "line": {"width": 0}}
        trace.update(mode="lines+markers", marker=dots)
    return trace.update(_hover(panel, series))


def _points(panel: Panel, series: Series) -> go.Scatter | go.Scattergl:
    count = len(series.x)
    size = series.size or (7 if count <= 300 else 5 if count <= 2000 else 3)
    marker: dict[str, Any] = {"color": series.colour, "size": size, "opacity": series.opacity, "line": {"width": 0}}
    if series.colour == style.INK:  # seen on white, on black and on bars
        marker["line"] = {"width": 1, "color": "rgba(255,255,255,0.85)"}
    kind = go.Scattergl if count > MANY else go.Scatter
    return kind(x=series.x, y=series.y, mode="markers", marker=marker, **_arms(panel, series), **_hover(panel, series))


def _arms(panel: Panel, series: Series) -> dict[str, Any]:
    if series.arms is None:
        return {}
    middle = series.x if panel.horizontal else series.y
    low, high = series.arms
    bars = {"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low}
    colour = _faded(_ink(series), series.opacity) if series.look == "points" else style.GREY
    bars |= {"color": colour, "thickness": 1.5, "width": 0}
    return {"error_x" if panel.horizontal else "error_y": bars}


def _bars(panel: Panel, series: Series) -> go.Bar:
    place, end = (series.y, series.x) if panel.horizontal else (series.x, series.y)
    left, right = panel.sides(series)
    along, across, turned = ("x", "y", "h") if panel.horizontal else ("y", "x", "v")
    return go.Bar(
        **{along: end - series.foot, across: place}, base=series.foot, width=right - left, offset=left - place,
        orientation=turned, marker={"color": _ink(series), "opacity": series.opacity, "line": {"width": 0}},
        **_arms(panel, series), **_hover(panel, series),
    )  # fmt: skip


def _band(panel: Panel, series: Series) -> go.Scatter:
    """One closed outline for every run of points without a gap: along ``low``, and back along ``high``."""
    order, upper = _outline(series)
    places = _taken(series.y if panel.horizontal else series.x, order)
    ends = np.where(upper, _taken(series.high, order), _taken(series.low, order))
    x, y = (ends, places) if panel.horizontal else (places, ends)
    return go.Scatter(
        x=x, y=y, mode="lines", fill="toself", fillcolor=_ink(series), hoveron="points",
        opacity=PALE if series.opacity == 1 else series.opacity,
        line={"color": _ink(series), "width": 0.8}, **_hover(panel, series, order),
    )  # fmt: skip


def _outline(series: Series) -> tuple[Int[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """Indices of the points of a band all around, -1 for a gap, and whether each is on the upper side."""
    there = np.flatnonzero(series.there)
    runs = np.split(there, np.flatnonzero(np.diff(there) > 1) + 1)
    order = [part for run in runs for part in (run, run[::-1], run[:1], [-1])]
    sides = [np.full(len(part), i % 4 == 1) for i, part in enumerate(order)]
    return np.concatenate(order).astype(int), np.concatenate(sides)


def _arrows(panel: Panel, series: Series) -> go.Scatter:
    """From, to and a gap, for each; a head at every second point."""
    order = np.repeat(np.arange(len(series.x)), 3)
    gap = np.where(series.there, 0.0, np.nan)
    ends = [(series.x_from, series.x), (series.y_from, series.y)]
    x, y = (np.stack([begin + gap, end + gap, gap + np.nan], axis=-1).ravel() for begin, end in ends)
    width = series.size or 1.5
    head = {"symbol": "arrow", "angleref": "previous", "size": np.tile([0, 5 + 2 * width, 0], len(series.x))}
    return go.Scatter(
        x=x, y=y, mode="lines+markers", line={"color": _ink(series), "width": width}, opacity=series.opacity,
        marker={**head, "color": _ink(series), "opacity": 1, "line": {"width": 0}}, **_hover(panel, series, order),
    )  # fmt: skip


def _taken(array: Any, order: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Elements in an order; NaN where the index is -1."""
    return np.where(order < 0, np.nan, np.append(np.asarray(array, dtype=float), np.nan)[order])


def _hover(panel: Panel, series: Series, order: Int[np.ndarray, " m"] | None = None) -> dict[str, Any]:
    """What a point is, the name of its series, its numbers, and every hover column, a line each."""
    names, columns = names_of(panel, series), list[Any]()

    def cell(array: Any) -> str:
        columns.append(array if order is None else _taken(array, order))
        return f"%{{customdata[{len(columns) - 1}]{_FORMAT}}}"

    lines = ["<b>%{hovertext}</b>"] if names else []
    lines += [_fixed(series.name)] if series.name else []
    lines += _numbers(panel, series, cell)
    lines += [f"{_fixed(name)} {cell(array)}" for name, array in series.hover.items()]
    found: dict[str, Any] = {"hovertemplate": "<br>".join(lines) + "<extra></extra>"}
    if columns:
        found["customdata"] = np.stack([np.asarray(array, np.float32) for array in columns], axis=-1)
    if names:
        texts = [*map(_text, names), ""]  # the last is for gaps
        found["hovertext"] = texts[:-1] if order is None else [texts[index] for index in order]
    return found


def _numbers(panel: Panel, series: Series, cell: Callable[[Any], str]) -> list[str]:
    """A line for each axis whose ticks do not name the points."""
    y_label = panel.second_label if series in panel.second else panel.y_label
    labels, along = {"x": panel.x_label, "y": y_label}, "x" if panel.horizontal else "y"
    stacked = series.look == "bars" and series.low is not None and series.high is None
    found = []
    for axis in ("x", "y"):
        if axis == named_axis(panel, series):
            continue
        text = f"%{{{axis}{_FORMAT}}}"
        if series.look == "arrows":
            text = f"{cell(getattr(series, f'{axis}_from'))} → {cell(getattr(series, axis))}"
        elif axis == along and series.look == "band":
            text = f"{cell(series.low)} to {cell(series.high)}"
        elif axis == along and stacked:
            text = f"{cell(getattr(series, axis) - series.foot)} ({cell(series.foot)} to {cell(getattr(series, axis))})"
        elif axis == along and series.arms is not None:
            text += f" ({cell(series.low)} to {cell(series.high)})"
        found.append(f"{_fixed(labels[axis] or axis)}: {text}")
    return found


def _fixed(text: str) -> str:
    """As a hover text shows it: a percent sign before a brace fills nothing in."""
    return _text(text).replace("%{", "%&#123;")


# -- rules and names -----------------------------------------------------------------------------------------------


def _draw_rules(figure: go.Figure, frame: Frame, axes: tuple[str, str]) -> None:
    for rule in frame.rules:
        ends, refs = _rule(frame, rule, axes)
        line = {"color": rule.colour or style.GREY, "width": 1, "dash": rule.dash}
        figure.add_shape(type="line", **ends, xref=refs[0], yref=refs[1], line=line, layer="below")


def _draw_edges(figure: go.Figure, frame: Frame, axes: tuple[str, str]) -> None:
    """The lines of the axes, which plotly leaves out of a figure where traces have an order of their own."""
    refs = {"xref": f"{axes[0]} domain", "yref": f"{axes[1]} domain", "line": {"color": style.GREY, "width": 1}}
    ends = [(0, 0, 0, 1), (0, 0, 1, 0), *([(1, 0, 1, 1)] if frame.panel.second else [])]
    for x0, y0, x1, y1 in ends:
        figure.add_shape(type="line", x0=x0, y0=y0, x1=x1, y1=y1, **refs)


def _rule(frame: Frame, rule: Rule, axes: tuple[str, str]) -> tuple[dict[str, float], tuple[str, str]]:
    if rule.axis == "x":
        return {"x0": rule.at, "x1": rule.at, "y0": 0, "y1": 1}, (axes[0], f"{axes[1]} domain")
    if rule.axis == "y":
        return {"x0": 0, "x1": 1, "y0": rule.at, "y1": rule.at}, (f"{axes[0]} domain", axes[1])
    low, high = min(*frame.x_range, *frame.y_range), max(*frame.x_range, *frame.y_range)
    return {"x0": low, "x1": high, "y0": low, "y1": high}, axes


def _draw_names(figure: go.Figure, frame: Frame, axes: tuple[tuple[str, str], tuple[str, str]]) -> None:
    for label in beside(frame, RULER):
        x = np.log10(label.x) if frame.panel.x_log else label.x
        y = np.log10(label.y) if frame.panel.y_log and not label.second else label.y
        on = {"xref": axes[0][0], "yref": axes[1 if label.second else 0][1]}
        look: dict[str, Any] = {**on, "text": _text(label.text), "xanchor": label.align, "yanchor": "middle"}
        look |= {"font": {"size": RULER.small}, "borderpad": 0}
        across, up = label.offset
        if label.moved:
            tie = {"arrowhead": 0, "arrowwidth": 0.8, "arrowcolor": style.GREY, "standoff": 4}
            figure.add_annotation(x=x, y=y, showarrow=True, ax=across, ay=-up, **tie, **look)
        else:
            figure.add_annotation(x=x, y=y, showarrow=False, xshift=across, yshift=up, **look)
