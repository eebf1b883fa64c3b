"""Curves of training with plotly."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from jola_interp.analysis import Losses, Trajectories
from jola_interp.convergence import UNDECIDED
from jola_interp.plots import style
from jola_interp.plots.screen import add_text, axes_of, escaped, lay_out

_PANEL, _LABELS = (340, 300), 84
"""Pixels: a panel of trajectories, and the room right of it for names."""
_UPPER = 36
"""Pixels above a panel for the axis of Σ gate learning rate."""
_AXIS = {
    "gridcolor": "rgba(128,128,128,0.18)",
    "zeroline": False,
    "ticks": "outside",
    "ticklen": 3,
    "tickfont": {"size": 11},
    "linecolor": style.GREY,
    "showline": True,
}
_REACH = "rgba(86,180,233,0.16)"
"""What a gate can reach, behind everything."""
_LEGEND = {"x": 1.02, "xanchor": "left", "yanchor": "top", "bgcolor": "rgba(0,0,0,0)", "font": {"size": 12}}


def draw_trajectories(tables: list[Trajectories]) -> go.Figure:
    """One panel per kind: all gates thin and grey, the top ones in colour and named at the right."""
    figure = go.Figure()
    width, height = _PANEL if len(tables) > 1 else (560, _PANEL[1])
    slot = width + _LABELS
    whole = slot * len(tables) - 20
    for index, table in enumerate(tables):
        domain = [index * slot / whole, (index * slot + width) / whole]
        _trajectory_axes(figure, table, index + 1, domain)
        _draw_reach(figure, table, index + 1, index + 1 + len(tables))
        _draw_gates(figure, table, index + 1)
        _name_gates(figure, table, index + 1, (width, height))
        above = 3 if table.travel is None else 3 + _UPPER
        add_text(figure, f"{table.kind} gates", (domain[0], 1.0), yshift=above)
    title = f"{tables[0].title}: P(open) of every gate"
    look: dict[str, Any] = {"showlegend": False, "plot_bgcolor": "rgba(0,0,0,0)"}
    lay_out(figure, (whole, height), title, style.trajectory_notes(tables), **look)
    if any(table.travel is not None for table in tables):
        _raise_top(figure)
    return figure


def _raise_top(figure: go.Figure) -> None:
    """Room for the upper axes, between the title and the panels."""
    whole = figure.layout.height + _UPPER
    from_top = (1 - figure.layout.title.y) * figure.layout.height
    margin = {"t": figure.layout.margin.t + _UPPER}
    figure.update_layout(height=whole, margin=margin, title={"y": 1 - from_top / whole})


def _trajectory_axes(figure: go.Figure, table: Trajectories, number: int, domain: list[float]) -> None:
    x_axis, y_axis = axes_of(number)
    figure.layout[f"xaxis{number}"] = {
        **_AXIS, "domain": domain, "anchor": f"y{number}", "range": _step_range(table.steps),
        "title": _title("optimiser step"),
    }  # fmt: skip
    figure.layout[f"yaxis{number}"] = {
        **_AXIS, "domain": [0, 1], "anchor": f"x{number}", "range": [-0.02, 1.02], "dtick": 0.2,
        "showticklabels": number == 1, "title": _title("P(open)" if number == 1 else ""),
    }  # fmt: skip
    for bound in UNDECIDED:
        _add_line(figure, (0, 1), (bound, bound), (f"{x_axis} domain", y_axis), dash="dot")
    if table.kept != table.steps[-1]:
        _mark_step(figure, table.kept, number)


def _draw_reach(figure: go.Figure, table: Trajectories, number: int, upper: int) -> None:
    """The band of P(open) that a gate could have reached, and Σ gate learning rate on an axis above the panel."""
    if table.lowest is None or table.highest is None:
        return
    x_axis, y_axis = axes_of(number)
    x, y = np.append(table.steps, table.steps[::-1]), np.append(table.lowest, table.highest[::-1])
    band = go.Scatter(x=x, y=y, mode="lines", line={"width": 0}, fill="toself", fillcolor=_REACH, hoverinfo="skip")
    figure.add_trace(band.update(name=f"within reach, {table.kind}", xaxis=x_axis, yaxis=y_axis))
    low, high = _step_range(table.steps)
    places = [place for place in style.tick_places(int(high) + 1, 6) if place >= low]
    figure.layout[f"xaxis{upper}"] = {
        **_AXIS, "gridcolor": "rgba(0,0,0,0)", "overlaying": x_axis, "side": "top", "anchor": y_axis, "matches": x_axis,
        "range": [low, high], "tickvals": places, "ticktext": [f"{value:.3g}" for value in table.travel_at(places)],
        "title": _title("Σ gate learning rate"),
    }  # fmt: skip
    # An axis without a trace is not drawn.
    figure.add_trace(go.Scatter(x=[None], y=[None], xaxis=f"x{upper}", yaxis=y_axis, hoverinfo="skip", name="Σ lr"))


def _draw_gates(figure: go.Figure, table: Trajectories, number: int) -> None:
    axes = dict(zip(("xaxis", "yaxis"), axes_of(number), strict=True))
    # All grey lines are one trace, parted by NaN: hundreds of traces are slow to draw.
    shown = table.values[:, list(table.shown)].T  # [unit, step]
    broken = np.concatenate([shown, np.full((len(shown), 1), np.nan, dtype=np.float32)], axis=1)
    steps = np.append(table.steps, table.steps[-1])
    line = {"color": "rgba(128,128,128,0.3)", "width": 0.8}
    grey = go.Scatter(x=np.tile(steps, len(shown)), y=broken.reshape(-1), mode="lines", line=line)
    figure.add_trace(grey.update(name=f"{table.kind} gates", hoverinfo="skip", **axes))
    for rank, unit in reversed(list(enumerate(table.top))):
        line = {"color": _colour(rank), "width": 2}
        name = table.labels[unit]
        shown_as = f"<b>{name}</b><br>step %{{x}}<br>P(open) %{{y:.3f}}<extra></extra>"
        gate = go.Scatter(x=table.steps, y=table.values[:, unit], mode="lines", line=line, name=name)
        figure.add_trace(gate.update(hovertemplate=shown_as, **axes))


def _name_gates(figure: go.Figure, table: Trajectories, number: int, size: tuple[float, float]) -> None:
    """Labels right of the panel, moved apart, each tied to the end of its line."""
    x_axis, y_axis = axes_of(number)
    ends = [float(table.values[-1, unit]) for unit in table.top]
    places = style.spread(ends, 16 / size[1], 0.0, 1.0)
    for rank, (unit, end, place) in enumerate(zip(table.top, ends, places, strict=True)):
        _add_line(
            figure, (1.0, 1 + 20 / size[0]), (end, place), (f"{x_axis} domain", y_axis), color=_colour(rank), width=1.5
        )
        where = {"xref": f"{x_axis} domain", "yref": y_axis, "yanchor": "middle", "font": {"size": 11}}
        add_text(figure, table.labels[unit], (1 + 25 / size[0], place), **where)


def draw_losses(table: Losses) -> go.Figure:
    """Cross-entropy and penalty above; Σ P(open) below; λ at the bottom if it moves. One step axis for all."""
    parts = [(_draw_ce, 250)]
    if table.opens:
        parts.append((_draw_opens, 140))
    if table.weights_move:
        parts.append((_draw_weights, 100))
    figure, gap, width = go.Figure(), 36, 620
    whole = sum(height for _, height in parts) + gap * (len(parts) - 1)
    top = float(whole)
    for number, (draw, height) in enumerate(parts, start=1):
        domain = [(top - height) / whole, top / whole]
        _loss_axes(figure, table, number, domain, last=number == len(parts))
        draw(figure, table, number)
        top -= height + gap
    lay_out(figure, (width, whole), f"{table.title}: training", table.notes, right=200, plot_bgcolor="rgba(0,0,0,0)")
    return figure


def _loss_axes(figure: go.Figure, table: Losses, number: int, domain: list[float], last: bool) -> None:
    steps = np.concatenate([table.steps, table.validation_steps])
    figure.layout[f"xaxis{number}"] = {
        **_AXIS, "domain": [0, 1], "anchor": f"y{number}", "range": _step_range(steps), "showticklabels": last,
        "matches": None if number == 1 else "x", "title": _title("optimiser step" if last else ""),
    }  # fmt: skip
    figure.layout[f"yaxis{number}"] = {**_AXIS, "domain": domain, "anchor": f"x{number}", "rangemode": "tozero"}
    figure.layout["legend" if number == 1 else f"legend{number}"] = {**_LEGEND, "y": domain[1]}
    if table.best is not None:
        _mark_step(figure, int(table.validation_steps[table.best]), number)


def _draw_ce(figure: go.Figure, table: Losses, number: int) -> None:
    options: dict[str, Any]
    pale, full = {"color": style.SKY, "width": 1}, {"color": style.SKY, "width": 2.5}
    name = "train CE" if table.window == 1 else "train CE, each step"
    _line(figure, number, table.steps, table.ce, name, line=pale, opacity=1 if table.window == 1 else 0.5)
    if table.window > 1:
        _line(figure, number, table.steps, table.smooth, f"train CE, mean of {table.window} steps", line=full)
    if table.opens:
        line = {"color": style.PURPLE, "width": 2}
        _line(figure, number, table.steps, table.penalty, "penalty (weighted)", line=line)
    if len(table.validation_steps):
        marker = {"size": 8, "symbol": "diamond", "color": style.VERMILION}
        line = {"color": style.VERMILION, "width": 1.5, "dash": "dash"}
        options = {"line": line, "marker": marker, "mode": "lines+markers"}
        _line(figure, number, table.validation_steps, table.validation_ce, "validation CE", **options)
    if table.best is not None:
        ring = {"size": 15, "symbol": "circle-open", "color": style.VERMILION, "line": {"width": 2}}
        at = slice(table.best, table.best + 1)
        text = "best epoch (kept)" if table.kept else "best epoch"
        options = {"mode": "markers", "marker": ring, "cliponaxis": False}
        _line(figure, number, table.validation_steps[at], table.validation_ce[at], text, **options)
    figure.layout[f"yaxis{number}"].update(title=_title("loss (nats per answer token)"))


def _draw_opens(figure: go.Figure, table: Losses, number: int) -> None:
    for kind, values in table.opens.items():
        _line(figure, number, table.steps, values, f"Σ P(open), {kind}", line={"color": style.KINDS[kind], "width": 2})
    title = _title("Σ P(open)")
    figure.layout[f"yaxis{number}"].update(title=title, range=[0, table.gates * 1.03], rangemode="normal")


def _draw_weights(figure: go.Figure, table: Losses, number: int) -> None:
    for kind, values in table.weights.items():
        line = {"color": style.KINDS[kind], "width": 2, "dash": "dot"}
        _line(figure, number, table.steps, values, f"λ, {kind}", line=line)
    figure.layout[f"yaxis{number}"].update(title=_title("λ"))


def _line(figure: go.Figure, number: int, x: Any, y: Any, name: str, mode: str = "lines", **options: Any) -> None:
    hover = f"{escaped(name)}<br>step %{{x}}: %{{y:.4g}}<extra></extra>"
    x_axis, y_axis = axes_of(number)
    trace = go.Scatter(x=x, y=y, name=name, mode=mode, hovertemplate=hover, xaxis=x_axis, yaxis=y_axis)
    trace.legend = "legend" if number == 1 else f"legend{number}"
    figure.add_trace(trace.update(options))


def _mark_step(figure: go.Figure, step: int, number: int) -> None:
    x_axis, y_axis = axes_of(number)
    _add_line(figure, (step, step), (0, 1), (x_axis, f"{y_axis} domain"), dash="dash")


def _add_line(
    figure: go.Figure, x: tuple[float, float], y: tuple[float, float], refs: tuple[str, str], **line: Any
) -> None:
    style_of = {"color": style.GREY, "width": 1, **line}
    ends = {"x0": x[0], "x1": x[1], "y0": y[0], "y1": y[1]}
    figure.add_shape(type="line", **ends, xref=refs[0], yref=refs[1], line=style_of, layer="below")


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 7, "font": {"size": 12}}


def _step_range(steps: np.ndarray) -> list[float]:
    """From the first step to the last, widened where they are one."""
    low, high = float(np.min(steps)), float(np.max(steps))
    pad = 0.01 * (high - low) or 0.5
    return [low - pad, high + pad]


def _colour(rank: int) -> str:
    return style.LINES[rank % len(style.LINES)]
