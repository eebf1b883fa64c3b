"""Layer × head maps with matplotlib, at the width of a column or a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colors, ticker
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path

from jola_interp.analysis import GridMap, Sheet
from jola_interp.analysis.grids import Ticks
from jola_interp.plots import map_layout, style
from jola_interp.plots.map_layout import Bar, Key, bars_of, key_of, own_x, own_y
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

LEFT, RIGHT, GAP, ROW_GAP = 0.40, 0.06, 0.10, 0.20
AXIS, BAR, LEGEND_ROW = 0.30, 0.42, 0.15
"""Inches below the panels for the ticks and the axis' name, for a colour bar, and for a row of the legend."""
BAR_WIDTH, BAR_GAP, MARGIN_GAP = 2.2, 0.26, 0.03
"""Inches: the widest colour bar, between two of them (their ticks' numbers), and between a map and its margin."""
NAMED_MARGIN = 0.15
"""A margin narrower than this has no name below: it would run into that of the map's axis."""
LETTER = SMALL * 0.56 / 72
"""Inches of a letter of small text."""
HATCH = ((style.INK, 1.1), ("white", 0.45))
"""Colour and width (points) of the strokes of a hatched cell: white within dark, to be seen on any colour."""
DIAGONAL = Path([(-1, -1), (1, 1)])
GRID = "#DDDDDD"
"""Between cells where white is the colour of a zero."""
SQUARE = 0.42
"""Inches: the widest square cell."""
VECTOR_CELLS = 4000
"""Panels of more cells are stored as pixels in PDF and SVG: as vectors they are slow to open."""


@dataclass(frozen=True)
class Places:
    """Sizes and places in inches: of the figure, a panel, and everything above and below the panels.

    Attributes:
        size, panel: (width, height).
        margin: width of the bars beside a map; 0 without.
        lefts, bottoms: of columns and rows.
        titles: lines of each panel's title, by row and column.
        title, notes: of the figure, as lines.
        bars: (left, bottom, width) of each colour bar.
        legend_columns: entries side by side.
        legend_top, notes_top: upper edges.
    """

    size: tuple[float, float]
    panel: tuple[float, float]
    margin: float
    lefts: list[float]
    bottoms: list[float]
    titles: list[list[list[str]]]
    title: list[str]
    notes: list[str]
    bars: dict[Key, tuple[float, float, float]]
    legend_columns: int
    legend_top: float
    notes_top: float


@in_style
def draw_sheet(sheet: Sheet, width: float) -> Figure:
    """All panels of a sheet at ``width`` inches, a colour bar for each scale, one legend below."""
    places = _places(sheet, width)
    figure = new_figure(*places.size)
    meshes: dict[Key, QuadMesh] = {}
    for row, panels in enumerate(sheet.rows):
        for column, panel in enumerate(panels):
            axes = add_axes(figure, places.lefts[column], places.bottoms[row], *places.panel)
            mesh = _draw_panel(axes, sheet, panel, places)
            if (key := key_of(panel)) is not None:
                meshes.setdefault(key, mesh)
            _lay_axes(axes, sheet, (row, column), places)
    _draw_margins(figure, sheet, places)
    add_lines(figure, places.title, LEFT, places.size[1] - 0.06, TITLE)
    for key, bar in bars_of(sheet).items():
        _draw_bar(figure, bar, meshes[key], places.bars[key])
    _draw_legend(figure, sheet, places)
    add_lines(figure, places.notes, LEFT, places.notes_top, SMALL)
    return figure


# -- places --------------------------------------------------------------------------------------------------------


def _places(sheet: Sheet, width: float) -> Places:
    """From the bottom up: notes, legend, colour bars, axis, rows of panels, titles."""
    rows, columns = len(sheet.rows), len(sheet.rows[0])
    layers = max(panel.shape[0] for panel in sheet.panels)
    units = max(panel.shape[1] for panel in sheet.panels)
    rooms = [_y_room(sheet, column) for column in range(columns)]
    slot = (width - LEFT - RIGHT - GAP * (columns - 1) - sum(rooms)) / columns
    margin = style.clamp(0.2 * slot, 0.1, 0.3) if map_layout.has_margins(sheet) else 0.0
    least = 0.1 * max(len(panel.x_ticks) for panel in sheet.panels)
    panel_width = min(slot - (margin + MARGIN_GAP if margin else 0), max(units * 0.4, 0.9, least))
    tall = style.clamp(slot * 1.9, 0.8, 4.4) if rows == 1 else style.clamp(slot * 2.1, 0.7, 2.2)
    panel_height = style.clamp(layers * 0.115, 0.62 if sheet.names else 0.45, tall)
    panel_height = max(panel_height, min(0.1 * max(len(panel.y_ticks) for panel in sheet.panels), 4.4))
    if any(panel.square for panel in sheet.panels):
        cell = min(slot / units, SQUARE, 4.4 / layers)
        panel_width, panel_height = units * cell, layers * cell
    lefts = [LEFT + sum(rooms[: column + 1]) + column * (slot + GAP) for column in range(columns)]
    title, notes = title_lines(sheet.title, width - LEFT), note_lines(sheet.notes, width - LEFT)
    entries, legend_columns = len(_legend(sheet)), _legend_columns(sheet, width)
    legend_rows = -(-entries // legend_columns) if entries else 0
    notes_top = 0.06 + LINE * len(notes)
    legend_top = notes_top + LEGEND_ROW * legend_rows + 0.04
    bars, first = _bar_places(sheet, lefts, panel_width, legend_top)
    titles = [[_title(sheet, row, column, slot) for column in range(columns)] for row in range(rows)]
    bottoms, top = _bottoms(sheet, titles, (panel_width, panel_height), first + AXIS)
    height = top + 0.20 + 0.15 * len(title) + 0.06
    panel = (panel_width, panel_height)
    return Places(
        (width, height), panel, margin, lefts, bottoms, titles, title, notes, bars, legend_columns, legend_top,
        notes_top,
    )  # fmt: skip


def _bottoms(
    sheet: Sheet, titles: list[list[list[str]]], panel: tuple[float, float], first: float
) -> tuple[list[float], float]:
    """Lower edge of each row, and the upper edge of the first, its titles' further lines included."""
    bottoms: list[float] = []
    at = 0.0
    for row in reversed(range(len(sheet.rows))):
        shown = [panel for column, panel in enumerate(sheet.rows[row]) if own_x(sheet, row, column)]
        at += max((_x_room(one, panel[0]) for one in shown), default=0)
        if bottoms:
            at += ROW_GAP + (AXIS - 0.1 if shown else 0)
        bottoms.insert(0, first + at)
        at += panel[1] + LINE * (max(map(len, titles[row])) - 1)
    return bottoms, bottoms[0] + panel[1] + LINE * (max(map(len, titles[0])) - 1)


def _bar_places(
    sheet: Sheet, lefts: list[float], panel: float, foot: float
) -> tuple[dict[Key, tuple[float, float, float]], float]:
    """Colour bars under their columns, side by side where they fit, and the upper edge of all."""
    levels: list[list[tuple[Key, Bar, float, float]]] = []
    bars = bars_of(sheet)
    spans = [bar.columns for bar in bars.values()]
    for key, bar in bars.items():
        left, right = lefts[bar.columns[0]], lefts[bar.columns[1]] + panel
        width = _bar_width(right - left, spans.count(bar.columns), len(bars))
        for level in levels:
            start = max([left, *(one + wide + BAR_GAP for _, _, one, wide in level if one < right)])
            if start + width <= right + GAP:
                level.append((key, bar, start, width))
                break
        else:
            levels.append([(key, bar, left, width)])
    found: dict[Key, tuple[float, float, float]] = {}
    for level in reversed(levels):
        lines = max(len(_bar_lines(bar.text, width)) for _, bar, _, width in level)
        foot += LINE * (lines - 1)
        found |= {key: (left, foot + 0.27, width) for key, _, left, width in level}
        foot += BAR
    return found, foot


def _bar_width(span: float, sharing: int, bars: int) -> float:
    """The width of a bar under columns of ``span`` inches that so many bars share."""
    if bars == 1:
        return min(span, BAR_WIDTH)
    share = (span - BAR_GAP * (sharing - 1)) / sharing
    return min(share if share >= 1 else span, BAR_WIDTH) - (BAR_GAP - GAP)


def _bar_lines(text: str, width: float) -> list[str]:
    return map_layout.folded(text, (width + 0.2) / LETTER)


def _title(sheet: Sheet, row: int, column: int, slot: float) -> list[str]:
    """What stands above a panel, as lines that fit."""
    return map_layout.folded(sheet.title_at(row, column), (slot + GAP * 0.7) * 72 / (LABEL * 0.56))


def _y_room(sheet: Sheet, column: int) -> float:
    """What the texts beside a column's maps need; the margin of the figure has room for numbers."""
    shown = [row[column] for i, row in enumerate(sheet.rows) if own_y(sheet, i, column)]
    if not shown:
        return 0.0
    text = LETTER * max(map_layout.longest(panel.y_ticks) for panel in shown)
    return max(0.0, text - 2 * LETTER) + (0 if column == 0 else AXIS)


def _x_room(panel: GridMap, width: float) -> float:
    """What texts below a map need beyond a line."""
    return LETTER * map_layout.longest(_x_texts(panel, width)) - 0.1 if _upright(panel, width) else 0.0


def _upright(panel: GridMap, width: float) -> bool:
    """Whether texts below a map are turned by a quarter: side by side they would not fit."""
    ticks = _x_texts(panel, width)
    return LETTER * (map_layout.longest(ticks) + 1) * len(ticks) > width


def _x_texts(panel: GridMap, width: float) -> Ticks:
    return map_layout.thinned(panel.x_ticks, int(width / 0.1))


# -- panels --------------------------------------------------------------------------------------------------------


def _draw_panel(axes: Axes, sheet: Sheet, panel: GridMap, places: Places) -> QuadMesh:
    layers, units = panel.shape
    cell = min(places.panel[0] / units, places.panel[1] / layers) * 72  # points
    many = layers * units > VECTOR_CELLS
    edge = GRID if panel.kind == "signed" else "white"
    mesh = axes.pcolormesh(
        np.arange(units + 1) - 0.5,
        np.arange(layers + 1) - 0.5,
        np.ma.masked_where(panel.blank, panel.values),
        edgecolors=edge if cell >= 3 else "face",
        linewidth=0.3 if cell >= 3 else 0.0,
        rasterized=many,
        **_colours(sheet, panel),
    )
    axes.set_facecolor(map_layout.blank_of(sheet)[1])
    at_layers, at_units = panel.hatched
    size = style.clamp(cell * 0.7, 0.7, 7.0)
    for colour, width in HATCH:
        axes.plot(
            at_units, at_layers, linestyle="none", marker=DIAGONAL, markersize=size, markeredgecolor=colour,
            markeredgewidth=width * min(1.0, size / 4), rasterized=many,
        )  # fmt: skip
    for place in style.separators(units, panel.group):
        axes.axvline(place, color="white", linewidth=1.4 if cell >= 3 else 0.5)
    _write(axes, panel, cell)
    return mesh


def _write(axes: Axes, panel: GridMap, cell: float) -> None:
    """The texts of a map in its cells, on dark cells in white."""
    if panel.texts is None:
        return
    on_dark = map_layout.dark(panel)
    letters = max(len(str(text)) for text in panel.texts.ravel())
    size = min(SMALL, cell / max(0.62 * letters, 1))
    for layer, unit in zip(*np.nonzero(~panel.blank), strict=True):
        colour = "white" if on_dark[layer, unit] else style.INK
        axes.text(
            unit, layer, str(panel.texts[layer, unit]), ha="center", va="center", fontsize=size, color=colour,
            parse_math=False,
        )  # fmt: skip


def _colours(sheet: Sheet, panel: GridMap) -> dict[str, Any]:
    low, high = panel.limits
    if panel.kind == "status":
        codes = colors.ListedColormap(map_layout.codes_of(sheet, panel.words))
        return {"cmap": codes, "vmin": low - 0.5, "vmax": high + 0.5}
    scale = map_layout.SCALES[panel.kind]
    cmap = scale if isinstance(scale, str) else colors.LinearSegmentedColormap.from_list(panel.kind, scale)
    return {"cmap": cmap, "norm": colors.LogNorm(low, high)} if panel.log else {"cmap": cmap, "vmin": low, "vmax": high}


def _lay_axes(axes: Axes, sheet: Sheet, at: tuple[int, int], places: Places) -> None:
    row, column = at
    panel = sheet.rows[row][column]
    width, height = places.panel
    axes.set_xlim(-0.5, panel.shape[1] - 0.5)
    axes.set_ylim(*map_layout.y_range(panel))
    _set_ticks(axes, panel, width, height)
    axes.spines[:].set_visible(False)
    axes.set_title("\n".join(places.titles[row][column]), loc="left", pad=2.5, fontsize=LABEL, parse_math=False)
    beside, below = own_y(sheet, row, column), own_x(sheet, row, column)
    axes.tick_params(labelleft=beside, left=beside, labelbottom=below)
    if beside:
        label = map_layout.label_of(sheet, row, column)
        fits = len(label) * LABEL * 0.58 / 72 < height + 0.1
        axes.set_ylabel(label if fits or not sheet.names or column else sheet.names[row], parse_math=False)
    if below:
        axes.set_xlabel(panel.x_label, parse_math=False)


def _set_ticks(axes: Axes, panel: GridMap, width: float, height: float) -> None:
    """Numbers, or the texts that a panel has in their place."""
    layers, units = panel.shape
    if panel.x_ticks:
        _set_texts(axes.xaxis, _x_texts(panel, width), 90 * _upright(panel, width))
    else:
        axes.set_xticks(style.tick_places(units, int(width / 0.17), panel.group) if units > 1 else [])
    if panel.y_ticks:
        _set_texts(axes.yaxis, map_layout.thinned(panel.y_ticks, int(height / 0.1)))
    else:
        axes.set_yticks(style.tick_places(layers, int(height / 0.28)))


def _set_texts(axis: Any, ticks: Ticks, rotation: float = 0) -> None:
    texts = [text for _, text in ticks]
    axis.set_ticks([place for place, _ in ticks], texts, rotation=rotation, parse_math=False)


# -- margins, colour bars, legend ----------------------------------------------------------------------------------


def _draw_margins(figure: Figure, sheet: Sheet, places: Places) -> None:
    """A bar per layer beside each map."""
    for row, panels in enumerate(sheet.rows):
        for column, panel in enumerate(panels):
            if not map_layout.has_margin(sheet, panel):
                continue
            left = places.lefts[column] + places.panel[0] + MARGIN_GAP
            axes = add_axes(figure, left, places.bottoms[row], places.margin, places.panel[1])
            axes.set_label("margin")
            _draw_margin(axes, sheet, panel)
            axes.tick_params(labelbottom=own_x(sheet, row, column), left=False, labelleft=False)
            if own_x(sheet, row, column) and places.margin >= NAMED_MARGIN:
                axes.set_xlabel(map_layout.margin_text(panel), loc="right")


def _draw_margin(axes: Axes, sheet: Sheet, panel: GridMap) -> None:
    foot = np.zeros(panel.shape[0])
    for (_, _, fill), lengths in zip(map_layout.margin_series(sheet, panel), panel.margin(), strict=True):
        axes.barh(np.arange(panel.shape[0]), np.nan_to_num(lengths), left=foot, height=0.8, color=fill, linewidth=0)
        foot = foot + np.nan_to_num(lengths)
    low, high = map_layout.margin_end(sheet, panel)
    axes.set_xlim(low, high)
    axes.set_ylim(*map_layout.y_range(panel))
    axes.set_xticks([high], [map_layout.short(high)], ha="right")
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_position(("data", 0))


def _draw_bar(figure: Figure, bar: Bar, mesh: QuadMesh, place: tuple[float, float, float]) -> None:
    """A horizontal colour bar, under the panels that it is for."""
    left, bottom, width = place
    axes = add_axes(figure, left, bottom, width, 0.07)
    axes.set_label("colour bar")
    drawn = figure.colorbar(mesh, cax=axes, orientation="horizontal")
    drawn.set_label("\n".join(_bar_lines(bar.text, width)), fontsize=SMALL, labelpad=1.0, parse_math=False)
    _set_bar_ticks(drawn, bar.panel, width)
    drawn.outline.set_visible(False)


def _set_bar_ticks(drawn: Any, panel: GridMap, width: float) -> None:
    """As many numbers as fit ``width`` inches: a narrow bar has those of its ends."""
    if panel.kind == "probability":
        drawn.set_ticks([0, 0.2, 0.4, 0.6, 0.8, 1.0] if width >= 0.8 else [0, 0.5, 1] if width >= 0.5 else [0, 1])
    elif width < 0.6:
        drawn.set_ticks(panel.limits, labels=[map_layout.short(end).replace("-", "−") for end in panel.limits])
    elif panel.log:
        values = map_layout.log_ticks(*panel.limits, most=max(2, int(width / 0.3)))
        drawn.set_ticks(values, labels=[f"{value:g}" for value in values])
    elif panel.kind == "signed" or width < BAR_WIDTH:
        few = max(2, int(width / (0.45 if panel.kind == "signed" else 0.3)))
        drawn.locator = ticker.MaxNLocator(few, steps=[1, 2, 5, 10])
        drawn.update_ticks()
    if panel.log:
        drawn.minorticks_off()


def _legend(sheet: Sheet) -> list[tuple[str, dict[str, Any]]]:
    """Name and marker of each entry."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for entry in map_layout.legend_of(sheet):
        marker: dict[str, Any] = {"marker": DIAGONAL, "markersize": 5.0}
        marker |= {"markeredgecolor": style.INK, "markeredgewidth": 0.9}
        if entry.colours:
            marker = {"marker": "s", "markersize": 5.0, "markeredgewidth": 0.0, "markerfacecolor": entry.colours[1]}
        rows.append((f"{entry.name} {entry.count}" if entry.count else entry.name, marker))
    return rows


def _legend_columns(sheet: Sheet, width: float) -> int:
    """As many entries side by side as fit."""
    widths = [LETTER * len(name) + 0.27 for name, _ in _legend(sheet)]
    most = len(widths) if width > 4.5 else min(len(widths), 3)
    for columns in range(most, 1, -1):
        rows = -(-len(widths) // columns)  # matplotlib fills one column after another
        if sum(max(widths[i : i + rows]) for i in range(0, len(widths), rows)) <= width - LEFT:
            return columns if columns == most else -(-len(widths) // rows)
    return min(most, 1)


def _draw_legend(figure: Figure, sheet: Sheet, places: Places) -> None:
    entries = _legend(sheet)
    if not entries:
        return
    width, height = places.size
    handles = [Line2D([], [], linestyle="none", label=name, **marker) for name, marker in entries]
    look: dict[str, Any] = {"handlelength": 1.0, "handletextpad": 0.3, "columnspacing": 1.0, "labelspacing": 0.35}
    look |= {"loc": "upper left", "bbox_to_anchor": (LEFT / width, places.legend_top / height)}
    figure.legend(handles=handles, ncols=places.legend_columns, borderpad=0, borderaxespad=0, **look)
