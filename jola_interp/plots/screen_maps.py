"""Layer × head maps with plotly. All places are computed in pixels of a figure of fixed size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from jola_interp.analysis import GridMap, Sheet
from jola_interp.analysis.grids import Ticks
from jola_interp.plots import map_layout, style
from jola_interp.plots.map_layout import Bar, Key, bars_of, key_of, own_x, own_y
from jola_interp.plots.screen import add_text, axes_of, escaped, lay_out

GAP, BAR, LEGEND, ROW_GAP = 22, 92, 170, 34
"""Pixels between columns, for the colour bar, for the legend, and between rows."""
MARGIN, MARGIN_GAP = 38, 7
"""Width of the bars beside a map, and pixels between them."""
AXIS, LINE, ENTRY, CHARACTER = 34, 15, 21, 6.4
"""Height of ticks and an axis' name between rows, of a line of text, of one of the legend, and width of a letter."""
SHORTEST, LONGEST = 90, 260
"""Of a colour bar."""
SQUARE = 480
"""About how long the longer side of a map of square cells is."""
HATCH = ((style.INK, 3.0), ("white", 1.2))
"""Colour and width of the strokes of a hatched cell: white within dark, to be seen on any colour of a scale."""
MARKERS = 2000
"""More hatched cells than these are one line each colour, not a marker each: browsers are slow with many."""
NAMES = (("L{}H{}", "L%{{y}}H%{{x}}"), ("L{}MLP", "L%{{y}}MLP"), ("L{}ATTN", "L%{{y}}ATTN"))
"""Labels that follow from the place, and how a template writes them: they need no text for every cell."""


@dataclass(frozen=True)
class Places:
    """Where things are, in pixels from the lower left corner of the plotting area.

    Attributes:
        lefts: left edge of each column.
        bottoms: lower edge of each row, the top row first.
        panel: (width, height) of a panel.
        bars: (left, upper edge, length) of each colour bar.
        legend: left edge of the legend.
        size: (width, height) of the plotting area.
    """

    lefts: list[float]
    bottoms: list[float]
    panel: tuple[float, float]
    bars: dict[Key, tuple[float, float, float]]
    legend: float
    size: tuple[float, float]


def draw_sheet(sheet: Sheet) -> go.Figure:
    """All panels of a sheet, a colour bar for each scale, one legend for the statuses and hatching."""
    places, bars = _places(sheet), bars_of(sheet)
    scales = {key: "coloraxis" if i == 0 else f"coloraxis{i + 1}" for i, key in enumerate(bars)}
    figure = go.Figure()
    columns, beside = len(sheet.rows[0]), len(sheet.panels)
    for index, panel in enumerate(sheet.panels):
        row, column = divmod(index, columns)
        _draw_panel(figure, sheet, index, places, scales)
        _lay_axes(figure, sheet, (row, column), index, places)
        if map_layout.has_margin(sheet, panel):
            beside += 1
            _draw_margin(figure, sheet, (row, column), (index + 1, beside), places)
    _draw_legend(figure, sheet)
    _lay_out(figure, sheet, places, {scales[key]: _colour_axis(bars[key], key, places) for key in bars})
    return figure


# -- places --------------------------------------------------------------------------------------------------------


def _places(sheet: Sheet) -> Places:
    """Columns from left to right, then rows from the last one up."""
    width, height = panel = _panel_size(sheet)
    rows, columns = len(sheet.rows), len(sheet.rows[0])
    bottoms, total = _bottoms(sheet, panel)
    lefts: list[float] = []
    bars: dict[Key, tuple[float, float, float]] = {}
    left = 0.0
    for column in range(columns):
        left += _y_room(sheet, column, height)
        lefts.append(left)
        left += width + (MARGIN_GAP + MARGIN if map_layout.has_margins(sheet, column) else 0)
        tops = [bottoms[row] + height for row in range(rows)]
        found, room = _stacked(sheet, column, left + 14, tops, bottoms)
        bars |= found
        left += room or (GAP if column + 1 < columns else 0)
    legend = left + 14
    if map_layout.legend_of(sheet):
        left = legend + LEGEND
    return Places(lefts, bottoms, panel, bars, legend, (left, total))


def _panel_size(sheet: Sheet) -> tuple[float, float]:
    """Tall and narrow models get wide cells, so that panels look alike side by side."""
    layers = max(panel.shape[0] for panel in sheet.panels)
    units = max(panel.shape[1] for panel in sheet.panels)
    if any(panel.square for panel in sheet.panels):
        cell = style.clamp(SQUARE / max(layers, units), 12, 52)
        return units * cell, layers * cell
    crowded = len(sheet.rows[0]) > 3 or len(sheet.rows) > 1
    width = style.clamp(units * (15 if crowded else 20), 118 if crowded else 170, 190 if crowded else 330)
    height = style.clamp(layers * (10 if crowded else 14), 116, 320 if crowded else 720)
    # A text needs a line of its own.
    wide = LINE * max(len(panel.x_ticks) for panel in sheet.panels)
    tall = LINE * max(len(panel.y_ticks) for panel in sheet.panels)
    return max(width, min(wide, 420)), max(height, min(tall, 720))


def _bottoms(sheet: Sheet, panel: tuple[float, float]) -> tuple[list[float], float]:
    """Lower edge of each row, and the height of all, with room between rows for what stands there."""
    bottoms: list[float] = []
    at = 0.0
    for row in reversed(range(len(sheet.rows))):
        columns = range(len(sheet.rows[row]))
        shown = [sheet.rows[row][column] for column in columns if own_x(sheet, row, column)]
        at += max((_x_room(one, panel[0]) for one in shown), default=0)
        if bottoms:
            at += AXIS if shown else 0
        bottoms.insert(0, at)
        lines = max(len(_title(sheet, row, column, panel[0])) for column in columns)
        # The margin above the first row has room for two lines, the gap between rows for one.
        at += panel[1] + LINE * max(0, lines - (1 if row else 2)) + (ROW_GAP if row else 0)
    lack = max(0.0, ENTRY * len(map_layout.legend_of(sheet)) - at)  # a legend that is too long would be scrolled
    return [bottom + lack for bottom in bottoms], at + lack


def _y_room(sheet: Sheet, column: int, height: float) -> float:
    """What the texts beside a column's maps need; the margin of the figure has room for numbers."""
    shown = [row[column] for i, row in enumerate(sheet.rows) if own_y(sheet, i, column)]
    if not shown:
        return 0.0
    text = CHARACTER * max(map_layout.longest(_y_texts(panel, height)) for panel in shown)
    return max(0.0, text - 2 * CHARACTER) + (0 if column == 0 else AXIS)


def _x_room(panel: GridMap, width: float) -> float:
    """What texts below a map need beyond a line."""
    return CHARACTER * map_layout.longest(_x_texts(panel, width)) - LINE if _upright(panel, width) else 0.0


def _upright(panel: GridMap, width: float) -> bool:
    """Whether texts below a map are turned by a quarter: side by side they would not fit."""
    ticks = _x_texts(panel, width)
    return CHARACTER * (map_layout.longest(ticks) + 1) * len(ticks) > width


def _x_texts(panel: GridMap, width: float) -> Ticks:
    return map_layout.thinned(panel.x_ticks, int(width // (LINE - 2)))


def _y_texts(panel: GridMap, height: float) -> Ticks:
    return map_layout.thinned(panel.y_ticks, int(height // (LINE - 2)))


def _stacked(
    sheet: Sheet, column: int, left: float, tops: list[float], bottoms: list[float]
) -> tuple[dict[Key, tuple[float, float, float]], float]:
    """Colour bars right of a column, each beside its own rows or, where those overlap, below each other."""
    found = {key: bar for key, bar in bars_of(sheet).items() if bar.columns[1] == column}
    spans = [(tops[bar.rows[0]], bottoms[bar.rows[1]]) for bar in found.values()]
    shifts = [0.0] * len(spans)
    room = max((_bar_width(bar, top - foot) for bar, (top, foot) in zip(found.values(), spans, strict=True)), default=0)
    rows = sorted(bar.rows for bar in found.values())
    if any(one[1] >= other[0] for one, other in zip(rows, rows[1:], strict=False)):
        whole = tops[0] - bottoms[-1]
        each = int(max(1, min(len(spans), whole // (SHORTEST + LINE))))
        step = whole / each
        spans = [(tops[0] - step * (i % each), tops[0] - step * (i % each + 1) + LINE) for i in range(len(spans))]
        room = max(_bar_width(bar, step - LINE) for bar in found.values())
        shifts = [room * (i // each) for i in range(len(spans))]
    placed = {
        key: (left + shift, top, min(top - foot, LONGEST))
        for key, shift, (top, foot) in zip(found, shifts, spans, strict=True)
    }
    return placed, (shifts[-1] + room if placed else 0.0)


def _bar_width(bar: Bar, length: float) -> float:
    return BAR + LINE * (len(_bar_lines(bar.text, min(length, LONGEST))) - 1)


def _bar_lines(text: str, length: float) -> list[str]:
    return map_layout.folded(text, length / CHARACTER)


# -- panels --------------------------------------------------------------------------------------------------------


def _draw_panel(figure: go.Figure, sheet: Sheet, index: int, places: Places, scales: dict[Key, str]) -> None:
    panel = sheet.panels[index]
    x_axis, y_axis = axes_of(index + 1)
    axes: dict[str, Any] = {"xaxis": x_axis, "yaxis": y_axis}
    layers, units = panel.shape
    cell = min(places.panel[0] / units, places.panel[1] / layers)
    gap = 1 if cell >= 5 else 0
    figure.add_trace(
        go.Heatmap(
            z=_heights(panel),
            x=np.arange(units),
            y=np.arange(layers),
            name=panel.title,
            xgap=gap,
            ygap=gap,
            hoverongaps=False,
            **_colours(sheet, panel, scales),
            **_hover(panel),
            **axes,
        )  # fmt: skip
    )
    for strokes in _hatching(panel, cell):
        figure.add_trace(strokes.update(name=panel.hatch or style.HATCHED, hoverinfo="skip", showlegend=False, **axes))
    for place in style.separators(units, panel.group):
        line = {"color": "white", "width": 3 if cell >= 5 else 1}
        shape = {"type": "line", "x0": place, "x1": place, "y0": -0.5, "y1": layers - 0.5, "line": line}
        figure.add_shape(**shape, xref=x_axis, yref=y_axis)


def _heights(panel: GridMap) -> np.ndarray:
    """What the colours stand for: the values, or their logarithms."""
    if not panel.log:
        return panel.values
    return np.log10(np.where(panel.blank, np.nan, panel.values))


def _hatching(panel: GridMap, cell: float) -> list[go.Scatter]:
    """A diagonal through each marked cell: light on dark, or, where there are many, whichever is seen on its cell."""
    layers, units = panel.hatched
    if not len(layers):
        return []
    if len(layers) <= MARKERS:
        size = style.clamp(cell * 0.8, 2, 16)
        looks = [_stroke(size, colour, width) for colour, width in HATCH]
        return [go.Scatter(x=units, y=layers, mode="markers", marker=look) for look in looks]
    dark = map_layout.dark(panel)[layers, units]
    ends = np.array([-0.35, 0.35, np.nan])
    found = []
    for colour, kept in ((style.INK, ~dark), ("white", dark)):
        x, y = (np.float32(at[kept, None] + ends).reshape(-1) for at in (units, layers))
        found.append(go.Scatter(x=x, y=y, mode="lines", line={"color": colour, "width": min(1.2, cell / 4)}))
    return found


def _stroke(size: float, colour: str, width: float) -> dict[str, Any]:
    """A diagonal through a cell."""
    return {"symbol": "line-ne", "size": size, "line": {"width": width, "color": colour}}


def _lay_axes(figure: go.Figure, sheet: Sheet, at: tuple[int, int], index: int, places: Places) -> None:
    (row, column), panel = at, sheet.panels[index]
    x_axis, y_axis = axes_of(index + 1)
    units, (width, height) = panel.shape[1], places.panel
    left, bottom = places.lefts[column], places.bottoms[row]
    whole_width, whole_height = places.size
    shown = own_x(sheet, row, column)
    # Between rows there is room for numbers, or for the titles of the row below.
    crammed = bool(panel.x_ticks) or (not shown and any(sheet.title_at(row + 1, i) for i in range(len(sheet.rows[0]))))
    common = {"showgrid": False, "zeroline": False, "ticks": "outside", "ticklen": 3, "tickfont": {"size": 11}}
    figure.layout[x_axis.replace("x", "xaxis")] = {
        **common,
        "domain": [left / whole_width, (left + width) / whole_width],
        "anchor": y_axis,
        "range": [-0.5, units - 0.5],
        **_x_ticks(panel, width),
        "title": {"text": escaped(panel.x_label) if shown else "", "standoff": 6, "font": {"size": 12}},
        **({"showticklabels": False} if crammed and not shown else {}),
    }
    label = map_layout.label_of(sheet, row, column)
    figure.layout[y_axis.replace("y", "yaxis")] = {
        **common,
        "domain": [bottom / whole_height, (bottom + height) / whole_height],
        "anchor": x_axis,
        "range": list(map_layout.y_range(panel)),
        **_y_ticks(panel, height),
        "showticklabels": own_y(sheet, row, column),
        "title": {"text": escaped(label), "standoff": 8, "font": {"size": 12}},
    }
    corner = (left / whole_width, (bottom + height) / whole_height)
    text = "<br>".join(map(escaped, _title(sheet, row, column, width)))
    add_text(figure, text, corner, yshift=3, **({"align": "left"} if "<br>" in text else {}))


def _title(sheet: Sheet, row: int, column: int, width: float) -> list[str]:
    """What stands above a panel, as lines that fit."""
    room = width + (MARGIN_GAP + MARGIN if map_layout.has_margins(sheet, column) else 0)
    return map_layout.folded(sheet.title_at(row, column), (room + GAP / 2) / CHARACTER)


def _x_ticks(panel: GridMap, width: float) -> dict[str, Any]:
    if not panel.x_ticks:
        units = panel.shape[1]
        return {"tickvals": style.tick_places(units, int(width // 24), panel.group) if units > 1 else []}
    return _texts(_x_texts(panel, width)) | {"tickangle": -90 if _upright(panel, width) else 0}


def _y_ticks(panel: GridMap, height: float) -> dict[str, Any]:
    if not panel.y_ticks:
        return {"tickvals": style.tick_places(panel.shape[0], int(height // 30))}
    return _texts(_y_texts(panel, height))


def _texts(ticks: Ticks) -> dict[str, Any]:
    return {"tickvals": [place for place, _ in ticks], "ticktext": [escaped(text) for _, text in ticks]}


# -- margins -------------------------------------------------------------------------------------------------------


def _draw_margin(
    figure: go.Figure, sheet: Sheet, at: tuple[int, int], numbers: tuple[int, int], places: Places
) -> None:
    """A bar per layer beside a map; it zooms with it. ``numbers`` are those of the map's axes and of its own."""
    (row, column), panel = at, sheet.rows[at[0]][at[1]]
    (_, mapped), (x_axis, y_axis) = axes_of(numbers[0]), axes_of(numbers[1])
    for (name, fill, _), lengths in zip(map_layout.margin_series(sheet, panel), panel.margin(), strict=True):
        length = "%{x:.0f}" if panel.kind == "status" else "%{x:.3g}"
        template = f"{escaped(panel.y_label)} %{{y}}<br>{escaped(name)} {length}<extra></extra>"
        bar = go.Bar(x=lengths, y=np.arange(panel.shape[0]), orientation="h", name=name, marker={"color": fill})
        figure.add_trace(bar.update(hovertemplate=template, showlegend=False, xaxis=x_axis, yaxis=y_axis))
    (whole_width, whole_height), (width, height) = places.size, places.panel
    left, bottom = places.lefts[column] + width + MARGIN_GAP, places.bottoms[row]
    low, high = map_layout.margin_end(sheet, panel)
    shown = own_x(sheet, row, column)
    figure.layout[x_axis.replace("x", "xaxis")] = {
        "domain": [left / whole_width, (left + MARGIN) / whole_width], "anchor": y_axis, "range": [low, high],
        "showgrid": False, "zeroline": low < 0, "zerolinecolor": style.GREY, "ticks": "outside", "ticklen": 3,
        "tickvals": [0, high], "ticktext": ["0", map_layout.short(high)], "tickfont": {"size": 10},
        "showticklabels": shown,
        "title": {"text": map_layout.margin_text(panel) if shown else "", "standoff": 6, "font": {"size": 12}},
    }  # fmt: skip
    paper = {"xref": f"{x_axis} domain", "yref": f"{y_axis} domain", "x0": 0, "x1": 1, "y0": 0, "y1": 1}
    figure.add_shape(type="rect", layer="below", fillcolor="white", line={"width": 0}, **paper)
    figure.layout[y_axis.replace("y", "yaxis")] = {
        "domain": [bottom / whole_height, (bottom + height) / whole_height], "anchor": x_axis,
        "range": list(map_layout.y_range(panel)), "matches": mapped, "showgrid": False, "zeroline": False,
        "ticks": "", "showticklabels": False,
    }  # fmt: skip


# -- colours, hovering, legend -------------------------------------------------------------------------------------


def _colours(sheet: Sheet, panel: GridMap, scales: dict[Key, str]) -> dict[str, Any]:
    if (key := key_of(panel)) is not None:
        return {"coloraxis": scales[key]}
    # Half a step beyond both ends: each code is then the middle of its colour.
    low, high = panel.range
    colours = map_layout.codes_of(sheet, panel.words, screen=True)
    steps = [[(i + end) / len(colours), colour] for i, colour in enumerate(colours) for end in (0, 1)]
    return {"colorscale": steps, "zmin": low - 0.5, "zmax": high + 0.5, "showscale": False}


def _hover(panel: GridMap) -> dict[str, Any]:
    """L12H7, the value, and every hover column, a line each."""
    columns = [np.asarray(x, np.float32) for x in panel.hover.values()]
    label, texts = _names(panel)
    lines = [f"<b>{label}</b>", _value(panel, len(columns))]
    lines += [f"{escaped(name)} %{{customdata[{i}]:.3f}}" for i, name in enumerate(panel.hover)]
    if panel.log:
        columns.append(np.asarray(panel.values, np.float32))
    found: dict[str, Any] = {"hovertemplate": "<br>".join(lines) + "<extra></extra>"}
    if columns:
        found["customdata"] = np.stack(columns, axis=-1)
    if panel.kind == "status":
        found["text"] = panel.names()
    if panel.texts is not None:
        found |= {"text": panel.texts, "texttemplate": "%{text}", "textfont": {"size": 11}}
    return found | texts


def _value(panel: GridMap, columns: int) -> str:
    """How a template writes the value; ``columns`` is the number of hover columns before a raw one."""
    number = {
        "probability": f"{escaped(panel.measure)} %{{z:.3f}}",
        "status": "%{text}",
        "magnitude": "%{z:.4g}",
        "signed": "%{z:+.4g}",
    }[panel.kind]
    if panel.log:
        number = f"%{{customdata[{columns}]:.4g}}"
    return f"{escaped(panel.unit)} {number}" if panel.unit and panel.kind in ("magnitude", "signed") else number


def _names(panel: GridMap) -> tuple[str, dict[str, Any]]:
    """How a template writes a cell's label, and the texts that it then needs."""
    shown = list(zip(*np.nonzero(~panel.blank), strict=True))
    for pattern, template in NAMES:
        if all(panel.labels[at] == pattern.format(*at) for at in shown):
            return template.format(), {}
    if not any(panel.labels[at] for at in shown):
        return f"{escaped(panel.y_label)} %{{y}}, {escaped(panel.x_label)} %{{x}}", {}
    texts = [[escaped(str(label)) for label in row] for row in panel.labels]
    return "%{hovertext}", {"hovertext": texts}


def _legend_rows(sheet: Sheet) -> list[tuple[str, dict[str, Any]]]:
    """Name and marker of each entry."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for entry in map_layout.legend_of(sheet):
        marker = _stroke(10, style.INK, 1.6)
        if entry.colours:
            marker = {"symbol": "square", "size": 12, "color": entry.colours[0]}
        rows.append((f"{entry.name} · {entry.count}" if entry.count else entry.name, marker))
    return rows


def _draw_legend(figure: go.Figure, sheet: Sheet) -> None:
    for name, marker in _legend_rows(sheet):
        entry = go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=escaped(name), showlegend=True)
        figure.add_trace(entry.update(hoverinfo="skip"))


def _lay_out(figure: go.Figure, sheet: Sheet, places: Places, scales: dict[str, Any]) -> None:
    legend = {"x": places.legend / places.size[0], "y": 1, "xanchor": "left", "yanchor": "top", "font": {"size": 12}}
    fixed = {"itemclick": False, "itemdoubleclick": False, "bgcolor": "rgba(0,0,0,0)"}
    more: dict[str, Any] = {"legend": {**legend, **fixed}, "plot_bgcolor": map_layout.blank_of(sheet)[0], **scales}
    if sheet.margin:
        more |= {"barmode": "stack", "bargap": 0.15}
        more["legend"]["traceorder"] = "normal"  # stacked bars would turn it round
    lay_out(figure, places.size, sheet.title, sheet.notes, **more)


def _colour_axis(bar: Bar, key: Key, places: Places) -> dict[str, Any]:
    panel, (left, top, length) = bar.panel, places.bars[key]
    width, height = places.size
    text = "<br>".join(map(escaped, _bar_lines(bar.text, length)))
    look: dict[str, Any] = {
        "title": {"text": text, "side": "right", "font": {"size": 12}},
        "x": left / width, "xanchor": "left", "y": top / height, "yanchor": "top", "xpad": 0, "ypad": 0,
        "thickness": 12, "len": length, "lenmode": "pixels", "outlinewidth": 0, "tickfont": {"size": 11},
    }  # fmt: skip
    low, high = panel.limits
    if panel.log:
        values = map_layout.log_ticks(low, high)
        look |= {"tickvals": np.log10(values).tolist(), "ticktext": [f"{value:g}" for value in values]}
        low, high = float(np.log10(low)), float(np.log10(high))
    scale = map_layout.SCALES[panel.kind]
    colours = scale if isinstance(scale, str) else [[i / (len(scale) - 1), one] for i, one in enumerate(scale)]
    return {"cmin": low, "cmax": high, "colorscale": colours, "colorbar": look}
