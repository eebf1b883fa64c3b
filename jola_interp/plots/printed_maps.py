"""Layer × head maps with matplotlib, at the width of a column or a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path

from jola_interp.analysis import GridMap, Sheet
from jola_interp.plots import style
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
"""Inches below the panels for the ticks and the axis' name, for the colour bar, and for a row of the legend."""
HATCH = ((style.INK, 1.1), ("white", 0.45))
"""Colour and width (points) of the strokes of a hatched cell: white within dark, to be seen on any colour."""
DIAGONAL = Path([(-1, -1), (1, 1)])
VECTOR_CELLS = 4000
"""Panels of more cells are stored as pixels in PDF and SVG: as vectors they are slow to open."""


@dataclass(frozen=True)
class Places:
    """Sizes and places in inches: of the figure, a panel, and everything above and below the panels."""

    size: tuple[float, float]
    panel: tuple[float, float]
    lefts: list[float]
    bottoms: list[float]
    title: list[str]
    notes: list[str]
    legend_columns: int
    legend_top: float
    notes_top: float


@in_style
def draw_sheet(sheet: Sheet, width: float) -> Figure:
    """All panels of a sheet at ``width`` inches, one colour bar for the values, one legend below."""
    places = _places(sheet, width)
    figure = new_figure(*places.size)
    meshes: dict[str, QuadMesh] = {}
    for row, panels in enumerate(sheet.rows):
        for column, panel in enumerate(panels):
            axes = add_axes(figure, places.lefts[column], places.bottoms[row], *places.panel)
            meshes[panel.kind] = _draw_panel(axes, panel, places)
            _lay_axes(axes, sheet, (row, column), places)
    add_lines(figure, places.title, LEFT, places.size[1] - 0.06, TITLE)
    _draw_bar(figure, sheet, meshes, places)
    _draw_legend(figure, sheet, places)
    add_lines(figure, places.notes, LEFT, places.notes_top, SMALL)
    return figure


def _places(sheet: Sheet, width: float) -> Places:
    """From the bottom up: notes, legend, colour bar, axis, rows of panels, titles."""
    rows, columns = len(sheet.rows), len(sheet.rows[0])
    layers = max(panel.shape[0] for panel in sheet.panels)
    units = max(panel.shape[1] for panel in sheet.panels)
    slot = (width - LEFT - RIGHT - GAP * (columns - 1)) / columns
    panel_width = min(slot, max(units * 0.4, 0.9))
    tall = style.clamp(slot * 1.9, 0.8, 4.4) if rows == 1 else style.clamp(slot * 2.1, 0.7, 2.2)
    panel_height = style.clamp(layers * 0.115, 0.62 if sheet.names else 0.45, tall)
    title, notes = title_lines(sheet.title, width - LEFT), note_lines(sheet.notes, width - LEFT)
    entries = len(_legend(sheet))
    legend_columns = entries if width > 4.5 else min(entries, 3)
    legend_rows = -(-entries // legend_columns) if entries else 0
    notes_top = 0.06 + LINE * len(notes)
    legend_top = notes_top + LEGEND_ROW * legend_rows + 0.04
    first = legend_top + (BAR if _value_panels(sheet) else 0) + AXIS
    bottoms = [first + (rows - 1 - row) * (panel_height + ROW_GAP) for row in range(rows)]
    height = bottoms[0] + panel_height + 0.20 + 0.15 * len(title) + 0.06
    lefts = [LEFT + column * (slot + GAP) for column in range(columns)]
    panel = (panel_width, panel_height)
    return Places((width, height), panel, lefts, bottoms, title, notes, legend_columns, legend_top, notes_top)


def _draw_panel(axes: Axes, panel: GridMap, places: Places) -> QuadMesh:
    layers, units = panel.shape
    cell = min(places.panel[0] / units, places.panel[1] / layers) * 72  # points
    many = layers * units > VECTOR_CELLS
    mesh = axes.pcolormesh(
        np.arange(units + 1) - 0.5,
        np.arange(layers + 1) - 0.5,
        np.ma.masked_invalid(panel.values),
        edgecolors="white" if cell >= 3 else "face",
        linewidth=0.3 if cell >= 3 else 0.0,
        rasterized=many,
        **_colours(panel),
    )
    axes.set_facecolor("#F0F0F0")
    at_layers, at_units = panel.hatched
    size = style.clamp(cell * 0.7, 0.7, 7.0)
    for colour, width in HATCH:
        axes.plot(
            at_units, at_layers, linestyle="none", marker=DIAGONAL, markersize=size, markeredgecolor=colour,
            markeredgewidth=width * min(1.0, size / 4), rasterized=many,
        )  # fmt: skip
    for place in style.separators(units, panel.group):
        axes.axvline(place, color="white", linewidth=1.4 if cell >= 3 else 0.5)
    return mesh


def _colours(panel: GridMap) -> dict[str, Any]:
    low, high = panel.range
    if panel.kind != "status":
        return {"cmap": style.SCALES[panel.kind], "vmin": low, "vmax": high}
    return {"cmap": colors.ListedColormap(style.STATUSES), "vmin": low - 0.5, "vmax": high + 0.5}


def _lay_axes(axes: Axes, sheet: Sheet, at: tuple[int, int], places: Places) -> None:
    row, column = at
    panel = sheet.rows[row][column]
    layers, units = panel.shape
    width, height = places.panel
    axes.set_xlim(-0.5, units - 0.5)
    axes.set_ylim(-0.5, layers - 0.5)
    axes.set_xticks(style.tick_places(units, int(width / 0.17), panel.group) if units > 1 else [])
    axes.set_yticks(style.tick_places(layers, int(height / 0.28)))
    axes.spines[:].set_visible(False)
    axes.set_title(sheet.title_at(row, column), loc="left", pad=2.5, fontsize=LABEL, parse_math=False)
    axes.tick_params(labelleft=column == 0, left=column == 0, labelbottom=row == len(sheet.rows) - 1)
    if column == 0:
        label = sheet.label_at(row)
        fits = len(label) * LABEL * 0.58 / 72 < height + 0.1
        axes.set_ylabel(label if fits or not sheet.names else sheet.names[row])
    if row == len(sheet.rows) - 1:
        axes.set_xlabel(panel.x_label)


def _value_panels(sheet: Sheet) -> list[GridMap]:
    return [panel for panel in sheet.panels if panel.kind != "status"]


def _draw_bar(figure: Figure, sheet: Sheet, meshes: dict[str, QuadMesh], places: Places) -> None:
    """One horizontal colour bar, under the panels that it is for."""
    values = _value_panels(sheet)
    if not values:
        return
    columns = [i for i, panel in enumerate(sheet.rows[0]) if panel.kind != "status"]
    whole = places.lefts[columns[-1]] + places.panel[0] - places.lefts[columns[0]]
    bar = add_axes(figure, places.lefts[columns[0]], places.legend_top + 0.27, min(whole, 2.2), 0.07)
    bar.set_label("colour bar")
    text = "P(open)" if values[0].kind == "probability" else values[0].title
    drawn = figure.colorbar(meshes[values[0].kind], cax=bar, orientation="horizontal")
    drawn.set_label(text, fontsize=SMALL, labelpad=1.0)
    if values[0].kind == "probability":
        drawn.set_ticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    drawn.outline.set_visible(False)


def _legend(sheet: Sheet) -> list[tuple[str, dict[str, Any]]]:
    """Name and marker of each entry: the statuses with their counts, and the hatching."""
    rows: list[tuple[str, dict[str, Any]]] = []
    square = {"marker": "s", "markersize": 5.0, "markeredgewidth": 0.0}
    for panel in sheet.panels:
        for code, (name, count) in zip(panel.categories, panel.counts().items(), strict=True):
            rows.append((f"{name} {count}", {**square, "markerfacecolor": style.STATUSES[code]}))
    if not all(panel.mask.all() for panel in sheet.panels):
        rows.append(("not editable", {**square, "markerfacecolor": "#F0F0F0"}))
    if any(len(panel.hatched[0]) for panel in sheet.panels):
        edge = {"markeredgecolor": style.INK, "markeredgewidth": 0.9}
        rows.append((style.HATCHED, {"marker": DIAGONAL, "markersize": 5.0, **edge}))
    return rows


def _draw_legend(figure: Figure, sheet: Sheet, places: Places) -> None:
    entries = _legend(sheet)
    if not entries:
        return
    width, height = places.size
    handles = [Line2D([], [], linestyle="none", label=name, **marker) for name, marker in entries]
    look: dict[str, Any] = {"handlelength": 1.0, "handletextpad": 0.3, "columnspacing": 1.0, "labelspacing": 0.35}
    look |= {"loc": "upper left", "bbox_to_anchor": (LEFT / width, places.legend_top / height)}
    figure.legend(handles=handles, ncols=places.legend_columns, borderpad=0, borderaxespad=0, **look)
