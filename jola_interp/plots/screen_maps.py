"""Layer × head maps with plotly. All places are computed in pixels of a figure of fixed size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from jola_interp.analysis import GridMap, Sheet
from jola_interp.plots import style
from jola_interp.plots.screen import add_text, axes_of, escaped, lay_out

GAP, BAR, LEGEND, ROW_GAP = 22, 92, 170, 34
"""Pixels between columns, for the colour bar, for the legend, and between rows."""
HATCH = ((style.INK, 3.0), ("white", 1.2))
"""Colour and width of the strokes of a hatched cell: white within dark, to be seen on any colour of a scale."""


@dataclass(frozen=True)
class Places:
    """Where things are, in pixels from the lower left corner of the plotting area.

    Attributes:
        lefts: left edge of each column.
        bottoms: lower edge of each row, the top row first.
        panel: (width, height) of a panel.
        bar: left edge of the colour bar; None without one.
        legend: left edge of the legend.
        size: (width, height) of the plotting area.
    """

    lefts: list[float]
    bottoms: list[float]
    panel: tuple[float, float]
    bar: float | None
    legend: float
    size: tuple[float, float]


def draw_sheet(sheet: Sheet) -> go.Figure:
    """All panels of a sheet, one colour bar for the values, one legend for the statuses and hatching."""
    places = _places(sheet)
    figure = go.Figure()
    columns = len(sheet.rows[0])
    for index, panel in enumerate(sheet.panels):
        row, column = divmod(index, columns)
        _draw_panel(figure, panel, index, places)
        _lay_axes(figure, sheet, (row, column), index, places)
    _draw_legend(figure, sheet)
    _lay_out(figure, sheet, places)
    return figure


def _places(sheet: Sheet) -> Places:
    """Tall and narrow models get wide cells, so that panels look alike side by side."""
    layers = max(panel.shape[0] for panel in sheet.panels)
    units = max(panel.shape[1] for panel in sheet.panels)
    rows, columns = len(sheet.rows), len(sheet.rows[0])
    crowded = columns > 3 or rows > 1
    width = style.clamp(units * (15 if crowded else 20), 118 if crowded else 170, 190 if crowded else 330)
    height = style.clamp(layers * (10 if crowded else 14), 116, 320 if crowded else 720)
    lefts, left, bar = [], 0.0, None
    kinds = [panel.kind for panel in sheet.rows[0]]
    for column, kind in enumerate(kinds):
        lefts.append(left)
        left += width
        if kind != "status" and (column + 1 == columns or kinds[column + 1] == "status"):
            bar = left + 14
            left += BAR
        else:
            left += GAP if column + 1 < columns else 0
    legend = left + 14
    if _legend_rows(sheet):
        left = legend + LEGEND
    total = rows * height + (rows - 1) * ROW_GAP
    bottoms = [total - (row + 1) * height - row * ROW_GAP for row in range(rows)]
    return Places(lefts, bottoms, (width, height), bar, legend, (left, total))


def _draw_panel(figure: go.Figure, panel: GridMap, index: int, places: Places) -> None:
    x_axis, y_axis = axes_of(index + 1)
    axes: dict[str, Any] = {"xaxis": x_axis, "yaxis": y_axis}
    layers, units = panel.shape
    cell = min(places.panel[0] / units, places.panel[1] / layers)
    gap = 1 if cell >= 5 else 0
    figure.add_trace(
        go.Heatmap(
            z=panel.values,
            x=np.arange(units),
            y=np.arange(layers),
            name=panel.title,
            xgap=gap,
            ygap=gap,
            hoverongaps=False,
            **_colours(panel),
            **_hover(panel),
            **axes,
        )  # fmt: skip
    )
    at_layers, at_units = panel.hatched
    for colour, width in HATCH if len(at_layers) else ():
        marker = _stroke(style.clamp(cell * 0.8, 2, 16), colour, width)
        strokes = go.Scatter(x=at_units, y=at_layers, mode="markers", marker=marker, name=style.HATCHED)
        figure.add_trace(strokes.update(hoverinfo="skip", showlegend=False, **axes))
    for place in style.separators(units, panel.group):
        line = {"color": "white", "width": 3 if cell >= 5 else 1}
        shape = {"type": "line", "x0": place, "x1": place, "y0": -0.5, "y1": layers - 0.5, "line": line}
        figure.add_shape(**shape, xref=x_axis, yref=y_axis)


def _stroke(size: float, colour: str, width: float) -> dict[str, Any]:
    """A diagonal through a cell."""
    return {"symbol": "line-ne", "size": size, "line": {"width": width, "color": colour}}


def _lay_axes(figure: go.Figure, sheet: Sheet, at: tuple[int, int], index: int, places: Places) -> None:
    (row, column), panel = at, sheet.panels[index]
    x_axis, y_axis = axes_of(index + 1)
    last_row = row == len(sheet.rows) - 1
    (layers, units), (width, height) = panel.shape, places.panel
    left, bottom = places.lefts[column], places.bottoms[row]
    whole_width, whole_height = places.size
    common = {"showgrid": False, "zeroline": False, "ticks": "outside", "ticklen": 3, "tickfont": {"size": 11}}
    heads = style.tick_places(units, int(width // 24), panel.group) if units > 1 else []
    figure.layout[x_axis.replace("x", "xaxis")] = {
        **common,
        "domain": [left / whole_width, (left + width) / whole_width],
        "anchor": y_axis,
        "range": [-0.5, units - 0.5],
        "tickvals": heads,
        "title": {"text": panel.x_label if last_row else "", "standoff": 6, "font": {"size": 12}},
    }
    figure.layout[y_axis.replace("y", "yaxis")] = {
        **common,
        "domain": [bottom / whole_height, (bottom + height) / whole_height],
        "anchor": x_axis,
        "range": [-0.5, layers - 0.5],
        "tickvals": style.tick_places(layers, int(height // 30)),
        "showticklabels": column == 0,
        "title": {"text": sheet.label_at(row) if column == 0 else "", "standoff": 8, "font": {"size": 12}},
    }
    corner = (left / whole_width, (bottom + height) / whole_height)
    add_text(figure, escaped(sheet.title_at(row, column)), corner, yshift=3)


def _colours(panel: GridMap) -> dict[str, Any]:
    if panel.kind != "status":
        return {"coloraxis": "coloraxis"}
    # Half a step beyond both ends: each code is then the middle of its colour.
    low, high = panel.range
    return {"colorscale": style.status_scale(), "zmin": low - 0.5, "zmax": high + 0.5, "showscale": False}


def _hover(panel: GridMap) -> dict[str, Any]:
    """L12H7, the value, and every hover column, a line each."""
    label = "L%{y}H%{x}" if panel.x_label == "head" else "L%{y}MLP"
    value = {"probability": "P(open) %{z:.3f}", "status": "%{text}", "magnitude": "%{z:.4g}"}[panel.kind]
    lines = [f"<b>{label}</b>", value]
    lines += [f"{escaped(name)} %{{customdata[{i}]:.3f}}" for i, name in enumerate(panel.hover)]
    found: dict[str, Any] = {"hovertemplate": "<br>".join(lines) + "<extra></extra>"}
    if panel.hover:
        found["customdata"] = np.stack([np.asarray(x, np.float32) for x in panel.hover.values()], axis=-1)
    if panel.kind == "status":
        found["text"] = panel.names()
    return found


def _legend_rows(sheet: Sheet) -> list[tuple[str, dict[str, Any]]]:
    """Name and marker of each entry: the statuses with their counts, and the hatching."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for panel in sheet.panels:
        for code, (name, count) in zip(panel.categories, panel.counts().items(), strict=True):
            marker = {"symbol": "square", "size": 12, "color": style.STATUSES[code] if code else style.NONE}
            rows.append((f"{name} · {count}", marker))
    if not all(panel.mask.all() for panel in sheet.panels):
        rows.append(("not editable", {"symbol": "square", "size": 12, "color": style.NO_UNIT}))
    if any(len(panel.hatched[0]) for panel in sheet.panels):
        rows.append((style.HATCHED, _stroke(10, style.INK, 1.6)))
    return rows


def _draw_legend(figure: go.Figure, sheet: Sheet) -> None:
    for name, marker in _legend_rows(sheet):
        entry = go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name, showlegend=True)
        figure.add_trace(entry.update(hoverinfo="skip"))


def _lay_out(figure: go.Figure, sheet: Sheet, places: Places) -> None:
    legend = {"x": places.legend / places.size[0], "y": 1, "xanchor": "left", "yanchor": "top", "font": {"size": 12}}
    fixed = {"itemclick": False, "itemdoubleclick": False, "bgcolor": "rgba(0,0,0,0)"}
    more: dict[str, Any] = {"legend": {**legend, **fixed}, "plot_bgcolor": style.NO_UNIT}
    if places.bar is not None:
        more["coloraxis"] = _colour_axis(sheet, places)
    lay_out(figure, places.size, sheet.title, sheet.notes, **more)


def _colour_axis(sheet: Sheet, places: Places) -> dict[str, Any]:
    panel = next(panel for panel in sheet.panels if panel.kind != "status")
    width, height = places.size
    text = "P(open)" if panel.kind == "probability" else panel.title
    bar = {
        "title": {"text": escaped(text), "side": "right", "font": {"size": 12}},
        "x": (places.bar or 0) / width, "xanchor": "left", "y": 1, "yanchor": "top", "xpad": 0, "ypad": 0,
        "thickness": 12, "len": min(height, 260), "lenmode": "pixels", "outlinewidth": 0, "tickfont": {"size": 11},
    }  # fmt: skip
    return {"cmin": panel.range[0], "cmax": panel.range[1], "colorscale": style.SCALES[panel.kind], "colorbar": bar}
