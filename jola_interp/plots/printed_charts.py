"""Panels of lines, points, bars, bands and arrows with matplotlib, at the width of a column or a page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors, font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Affine2D

from jola_interp.plots import style
from jola_interp.plots.chart import Chart, Panel, Rule, Series
from jola_interp.plots.chart_places import (
    NOTHING,
    PALE,
    Beside,
    Frame,
    Grid,
    Ruler,
    arrange,
    beside,
    broken,
    em,
    folded,
)
from jola_interp.plots.printed import (
    LABEL,
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

LEFT, RIGHT, BELOW = 0.44, 0.04, 0.32
"""Inches beside and below the panels."""
LEAST, LOWEST, TALLEST = 0.95, 0.75, 3.0
"""Inches: a row is broken before its panels are narrower; how high a panel without names of rows may be."""
LEGEND_ROW, HANDLE = 0.122, 0.30
"""Inches: a line of the legend, and what stands before a name and after it."""
VECTOR_POINTS = 2000
"""Series of more points are stored as pixels in PDF and SVG: as vectors they are slow to open."""
RULER = Ruler(small=SMALL / 72, label=LABEL / 72, pad=0.045, gap=0.12, left=LEFT, below=BELOW, names=1.4, tallest=6.5)
POINT = 0.48
"""Points on paper for a pixel on screen."""
_DASHES: dict[str, Any] = {"solid": "-", "dash": (0, (4, 2)), "dot": (0, (1, 1.5))}
_MORE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Source Han Sans SC", "PingFang SC",
    "Hiragino Sans", "Microsoft YaHei", "SimHei", "Malgun Gothic", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Arial Unicode MS", "Unifont",
)  # fmt: skip
"""Looked for where a chart has Chinese, Japanese or Korean text, which DejaVu Sans has not."""


@in_style
def draw_chart(chart: Chart, width: float) -> Figure:
    """All panels of a chart at ``width`` inches: rows too long for it are broken; the legend beside or below."""
    matplotlib.rcParams["font.family"] = _fonts(chart)  # until the end of in_style
    entries = chart.legend
    aside = _aside(entries) if width > 4.5 and len(chart.rows[0]) == 1 and entries else 0.0
    grid = _fitted(chart, width - aside)
    left = grid.frames[0].left if grid.frames[0].left <= LEFT + 0.2 else 0.06
    title, notes = title_lines(chart.title, width - left - RIGHT), note_lines(chart.notes, width - left - RIGHT)
    names, columns = _columns(entries, width - left - RIGHT)
    legend = 0.0 if aside or not entries else 0.04 + LEGEND_ROW * _rows(names, columns)
    below = 0.06 + LINE * len(notes)
    figure = new_figure(width, below + legend + grid.size[1] + 0.15 * len(title) + 0.08)
    for frame in grid.frames:
        _draw_frame(figure, frame, below + legend)
    if aside:
        top = below + grid.frames[0].bottom + grid.frames[0].height
        _draw_legend(figure, entries, _folded(entries), 1, (grid.size[0] + 0.05, top))
    elif entries:
        _draw_legend(figure, entries, names, columns, (left, below + legend))
    add_lines(figure, title, left, figure.get_size_inches()[1] - 0.06, TITLE)
    add_lines(figure, notes, left, below, SMALL)
    return figure


def _fitted(chart: Chart, width: float) -> Grid:
    """The longest rows in which panels are still wide enough to be read."""
    ruler = replace(RULER, names=min(RULER.names, 0.3 * width))
    for most in range(len(chart.rows[0]), 0, -1):
        grid = _filled(broken(chart.rows, most), chart, ruler, width - RIGHT)
        if grid.frames[0].width >= LEAST:
            break
    return grid


def _filled(rows: list[list[Panel]], chart: Chart, ruler: Ruler, width: float) -> Grid:
    """Panels as wide as their text leaves room, which itself depends on how wide they are: three rounds settle it."""
    columns = max(map(len, rows))
    inner = width / columns - ruler.left
    for _ in range(3):
        ratio = chart.height
        if any(panel.square for panel in chart.panels):
            inner = min(inner, TALLEST / ratio)
        else:
            ratio = style.clamp(ratio, LOWEST / inner, TALLEST / inner)
        grid = arrange(rows, ratio, ruler, inner)
        inner = max(inner + (width - grid.size[0]) / columns, 0.4)
    return grid


def _fonts(chart: Chart) -> list[str]:
    """DejaVu Sans, and what there is of other fonts for a chart with text that it lacks."""
    if not any(unicodedata.east_asian_width(character) in "WF" for text in _texts(chart) for character in text):
        return ["DejaVu Sans"]
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _MORE_FONTS if name in installed)]


def _texts(chart: Chart) -> Iterator[str]:
    yield from (chart.title, *chart.notes)
    for panel in chart.panels:
        yield from (panel.title, panel.x_label, panel.y_label, panel.second_label)
        yield from (text for _, text in (*panel.x_ticks, *panel.y_ticks))
        for series in panel.everything:
            yield from (series.name, *(series.labels[index] for index in series.named))


# -- a panel -------------------------------------------------------------------------------------------------------


def _draw_frame(figure: Figure, frame: Frame, below: float) -> None:
    axes = add_axes(figure, frame.left, below + frame.bottom, frame.width, frame.height)
    second = _lay_axes(axes, frame)
    for rule in frame.rules:
        _draw_rule(axes, frame, rule)
    for order, series in enumerate(frame.panel.everything):
        on_second = second is not None and order >= len(frame.panel.series)
        draw = {"line": _line, "points": _points, "bars": _bars, "band": _band, "arrows": _arrows}[series.look]
        draw(second if second is not None and on_second else axes, frame, series, 2 + order / 1000)
    for label in beside(frame, RULER):
        _draw_name(second if second is not None and label.second else axes, label)
    if frame.panel.empty:
        middle: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, NOTHING, fontsize=SMALL, color=style.GREY, **middle)


def _lay_axes(axes: Axes, frame: Frame) -> Axes | None:
    """Scales, ticks and text; the axes of the second y axis where there is one."""
    panel, words = frame.panel, frame.words
    axes.set_xlim(frame.x_range)
    axes.set_ylim(frame.y_range[::-1] if panel.flipped else frame.y_range)
    _scale(axes.xaxis, panel.x_log, frame.width / 0.32, frame.whole("x"))
    _scale(axes.yaxis, panel.y_log, frame.height / 0.21, frame.whole("y"))
    if panel.x_ticks:
        turned: dict[str, Any] = {"rotation": 90, "va": "top"} if words.upright else {}
        axes.set_xticks(*_ticks(words.x_ticks), parse_math=False, **turned)
    if panel.y_ticks:
        axes.set_yticks(*_ticks(words.y_ticks), parse_math=False)
    axes.grid(not (panel.x_ticks or panel.empty), axis="x")
    axes.grid(not (panel.y_ticks or panel.empty), axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("\n".join(words.x_label), parse_math=False)
    axes.set_title("\n".join(words.title), loc="left", pad=3, parse_math=False)
    axes.tick_params(which="both", labelleft=words.y_named)
    if words.y_named:
        axes.set_ylabel("\n".join(words.y_label), parse_math=False)
    if not panel.second:
        return None
    second = axes.twinx()
    second.spines["right"].set_visible(True)
    second.set_ylim(frame.second_range)
    _scale(second.yaxis, False, frame.height / 0.21, False)
    second.set_ylabel("\n".join(words.second_label), parse_math=False)
    return second


def _scale(axis: Axis, log: bool, most: float, whole: bool) -> None:
    """At most so many numbers at an axis; few decades have marks between them."""
    if not log:
        axis.set_major_locator(MaxNLocator(max(int(most), 2), steps=[1, 2, 5, 10], integer=whole))
        axis.set_major_formatter(FuncFormatter(_number))
        return
    ends = axis.get_view_interval()
    (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(numticks=max(int(most), 2)))
    if np.ptp(np.log10(ends)) > 3:
        axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())  # room was made for the others only
    axis.set_tick_params(which="minor", size=1.2, width=0.3)


def _ticks(kept: list[tuple[float, str]]) -> tuple[list[float], list[str]]:
    return [place for place, _ in kept], [text for _, text in kept]


def _number(value: float, _: int | None = None) -> str:
    """A number at an axis: 0.3, 1200, 2×10⁻⁵."""
    text = f"{value:.10g}" if 1e-4 <= abs(value) < 1e5 or value == 0 else f"{value:.6e}"
    mantissa, power = text.split("e") if "e" in text else (text, "")
    mantissa = mantissa.replace("-", "−")
    if not power:
        return mantissa
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa.rstrip('0').rstrip('.')}×10{raised}"


def _draw_rule(axes: Axes, frame: Frame, rule: Rule) -> None:
    look: dict[str, Any] = {"color": _ink(rule.colour or style.GREY), "linewidth": 0.5, "zorder": 1.5}
    look["linestyle"] = _DASHES[rule.dash]
    if rule.axis == "x":
        axes.axvline(rule.at, **look)
    elif rule.axis == "y":
        axes.axhline(rule.at, **look)
    else:
        ends = [min(*frame.x_range, *frame.y_range), max(*frame.x_range, *frame.y_range)]
        axes.plot(ends, ends, scalex=False, scaley=False, label="_diagonal", **look)


def _draw_name(axes: Axes, label: Beside) -> None:
    tie: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.4, "color": style.GREY, "shrinkA": 0, "shrinkB": 1.5}
    tie["relpos"] = (0.0 if label.align == "left" else 1.0, 0.5)
    axes.annotate(
        label.text, (label.x, label.y), xytext=(72 * label.offset[0], 72 * label.offset[1]),
        textcoords="offset points", ha=label.align, va="center", fontsize=SMALL, parse_math=False,
        arrowprops=tie if label.moved else None, annotation_clip=False, zorder=4,
    )  # fmt: skip


# -- series --------------------------------------------------------------------------------------------------------


def _ink(colour: str, opacity: float = 1.0) -> tuple[float, float, float, float]:
    """A colour as matplotlib takes it, also one that is written rgba(…)."""
    parts = re.fullmatch(r"rgba?\(([^)]*)\)", colour)
    if parts is None:
        red, green, blue, alpha = colors.to_rgba(colour)
    else:
        numbers = [float(number) for number in parts[1].split(",")]
        (red, green, blue), alpha = (number / 255 for number in numbers[:3]), (*numbers, 1.0)[3]
    return red, green, blue, alpha * opacity


def _line(axes: Axes, frame: Frame, series: Series, order: float) -> None:
    del frame
    width = POINT * (series.size or 2.3)
    dots: dict[str, Any] = {"marker": "o", "markersize": 2.2 * width, "markeredgewidth": 0}
    dots["markevery"] = np.flatnonzero(series.alone).tolist()
    axes.plot(
        series.x, series.y, color=_ink(series.colour, series.opacity), linewidth=width, linestyle=_DASHES[series.dash],
        label=series.name, zorder=order, **(dots if series.alone.any() else {}),
    )  # fmt: skip


def _points(axes: Axes, frame: Frame, series: Series, order: float) -> None:
    count = len(series.x)
    size = POINT * (series.size or (7 if count <= 300 else 5 if count <= 2000 else 3))
    many = count > VECTOR_POINTS
    axes.plot(
        series.x, series.y, linestyle="none", marker="o", markersize=size, markeredgecolor="white",
        markeredgewidth=0.4 if series.colour == style.INK else 0,  # to be seen on bars too
        color=_ink(series.colour, series.opacity), label=series.name, zorder=order, rasterized=many,
        clip_on=not _inside(frame, series),
    )  # fmt: skip
    _arms(axes, frame, series, order)


def _inside(frame: Frame, series: Series) -> bool:
    """Whether all points are on the panel: then those at its edge are drawn whole."""
    places = frame.at(series.x, series.y, series in frame.panel.second)[series.there]
    return bool(((places >= -1e-6) & (places <= np.array([frame.width, frame.height]) + 1e-6)).all())


def _arms(axes: Axes, frame: Frame, series: Series, order: float) -> None:
    if series.arms is None:
        return
    draw, places = (axes.hlines, series.y) if frame.panel.horizontal else (axes.vlines, series.x)
    width = 0.8 if series.look == "points" else 0.6
    colour = _ink(series.colour, series.opacity) if series.look == "points" else _ink(style.GREY)
    draw(places, *series.arms, colors=[colour], linewidth=width, zorder=order, rasterized=len(places) > VECTOR_POINTS)


def _bars(axes: Axes, frame: Frame, series: Series, order: float) -> None:
    there = series.there
    left, right = (side[there] for side in frame.panel.sides(series))
    end, foot = (series.x if frame.panel.horizontal else series.y)[there], series.foot[there]
    look: dict[str, Any] = {"color": _ink(series.colour, series.opacity), "linewidth": 0, "align": "edge"}
    look |= {"label": series.name, "zorder": order}
    if frame.panel.horizontal:
        axes.barh(left, end - foot, right - left, foot, **look)
    else:
        axes.bar(left, end - foot, right - left, foot, **look)
    _arms(axes, frame, series, order)


def _band(axes: Axes, frame: Frame, series: Series, order: float) -> None:
    assert series.low is not None and series.high is not None
    fill, places = (axes.fill_betweenx, series.y) if frame.panel.horizontal else (axes.fill_between, series.x)
    colour = _ink(series.colour, PALE if series.opacity == 1 else series.opacity)
    look: dict[str, Any] = {"color": colour, "linewidth": 0.4, "label": series.name, "zorder": order}
    fill(places, series.low, series.high, where=series.there, **look)


def _arrows(axes: Axes, frame: Frame, series: Series, order: float) -> None:
    """Shafts, and a head on each as it is turned on paper."""
    assert series.x_from is not None and series.y_from is not None
    figure, there, second = axes.figure, series.there, series in frame.panel.second
    begin = np.column_stack([series.x_from, series.y_from])[there]
    end = np.column_stack([series.x, series.y])[there]
    colour, width = _ink(series.colour, series.opacity), POINT * (series.size or 1.5)
    look: dict[str, Any] = {"color": [colour], "zorder": order, "rasterized": len(end) > VECTOR_POINTS}
    shafts = LineCollection(list(np.stack([begin, end], axis=1)), linewidths=width, label=series.name, **look)
    axes.add_collection(shafts, autolim=False)
    turn = frame.at(end[:, 0], end[:, 1], second) - frame.at(begin[:, 0], begin[:, 1], second)
    angles = np.arctan2(turn[:, 1], turn[:, 0])
    head = (1.6 + 1.6 * width) * np.array([[0.0, 0.0], [-1.0, 0.45], [-1.0, -0.45]])  # points, from the tip
    turned = [head @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a in angles]
    in_points = Affine2D().scale(1 / 72) + figure.dpi_scale_trans
    heads = PolyCollection(turned, offsets=end, offset_transform=axes.transData, linewidths=0, **look)
    heads.set_transform(in_points)
    axes.add_collection(heads, autolim=False)


# -- legend --------------------------------------------------------------------------------------------------------


def _aside(entries: list[Series]) -> float:
    """Inches that a legend takes beside a panel."""
    widest = max(em(line) for lines in _folded(entries) for line in lines)
    return HANDLE + 0.1 + widest * SMALL / 72


def _folded(entries: list[Series]) -> list[list[str]]:
    return [folded(series.name, 22, 4) for series in entries]


def _columns(entries: list[Series], width: float) -> tuple[list[list[str]], int]:
    """The lines of each name, and how many names stand side by side."""
    names = [folded(series.name, (width - HANDLE) * 72 / SMALL) for series in entries]
    widths = [max(map(em, lines)) * SMALL / 72 + HANDLE for lines in names]
    for columns in range(len(names), 1, -1):
        parts = np.array_split(widths, columns)  # as matplotlib fills them
        if sum(float(part.max()) for part in parts) <= width + HANDLE / 3:
            return names, columns
    return names, 1


def _rows(names: list[list[str]], columns: int) -> int:
    """Lines of a legend below the panels."""
    return -(-len(names) // columns) * max(map(len, names))


def _draw_legend(
    figure: Figure, entries: list[Series], names: list[list[str]], columns: int, corner: tuple[float, float]
) -> None:
    """A legend whose upper left corner is so many inches from the figure's lower left one."""
    width, height = figure.get_size_inches()
    look: dict[str, Any] = {"handlelength": 1.6, "handletextpad": 0.5, "columnspacing": 1.0, "labelspacing": 0.35}
    look |= {"loc": "upper left", "bbox_to_anchor": (corner[0] / width, corner[1] / height)}
    legend = figure.legend(
        [_handle(series) for series in entries], ["\n".join(lines) for lines in names], ncols=columns, borderpad=0,
        borderaxespad=0, **look,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _handle(series: Series) -> Line2D | Patch:
    colour = _ink(series.colour, series.opacity)
    if series.look in ("bars", "band"):
        pale = PALE if series.look == "band" and series.opacity == 1 else series.opacity
        return Patch(facecolor=_ink(series.colour, pale), linewidth=0)
    if series.look == "points":
        colour = _ink(series.colour, max(series.opacity, 0.8))
        return Line2D([], [], linestyle="none", marker="o", markersize=3.2, markeredgewidth=0, color=colour)
    width = POINT * (series.size or 2.3)
    head: dict[str, Any] = {"marker": ">", "markersize": 3, "markeredgewidth": 0} if series.look == "arrows" else {}
    return Line2D([], [], color=colour, linewidth=width, linestyle=_DASHES[series.dash], **head)
