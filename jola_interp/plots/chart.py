"""Panels of lines, points, bars and bands: one container that both renderers draw, so the two cannot disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from jola_interp.plots.style import BLUE, Renderer, require

if TYPE_CHECKING:
    import pandas as pd

Look = Literal["line", "points", "bars", "band", "arrows"]
"""``line`` · ``points`` with error bars where ``low`` and ``high`` are given · ``bars`` from ``low`` (or 0) to y ·
``band`` between ``low`` and ``high`` · ``arrows`` from (``x_from``, ``y_from``) to (x, y)."""
Dash = Literal["solid", "dash", "dot"]


@dataclass(frozen=True, eq=False)
class Series:
    """Numbers of one name and look.

    Attributes:
        x, y: [n] places in the panel's units; NaN is a gap.
        name: in the legend and on hovering.
        look: see :data:`Look`.
        colour: of all of it.
        low, high: [n] ends of bands, error bars and, ``low`` alone, the foot of bars.
        x_from, y_from: [n] where arrows begin.
        labels: [n] what each point is ("L3H7"), on hovering; empty is none.
        named: indices of the points whose label is written beside them.
        hover: more numbers per point, by name.
        dash: of lines.
        size: pixels of a point, or width of a line; None is what fits.
        opacity: in (0, 1].
        legend: whether it stands in the legend.

    Raises:
        ValueError: arrays that are not [n], an unknown look, or a look without the numbers that it needs.
    """

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    name: str
    look: Look = "line"
    colour: str = BLUE
    low: Float[np.ndarray, " n"] | None = None
    high: Float[np.ndarray, " n"] | None = None
    x_from: Float[np.ndarray, " n"] | None = None
    y_from: Float[np.ndarray, " n"] | None = None
    labels: tuple[str, ...] = ()
    named: tuple[int, ...] = ()
    hover: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    dash: Dash = "solid"
    size: float | None = None
    opacity: float = 1.0
    legend: bool = True

    def __post_init__(self) -> None:
        if self.look not in get_args(Look):
            raise ValueError(f"look must be one of {', '.join(get_args(Look))}; got {self.look!r}")
        needs = {"band": ("low", "high"), "arrows": ("x_from", "y_from")}.get(self.look, ())
        if missing := [name for name in needs if getattr(self, name) is None]:
            raise ValueError(f"{self.name}: look {self.look!r} needs {' and '.join(missing)}")
        count = len(self.x)
        arrays = {name: getattr(self, name) for name in ("x", "y", "low", "high", "x_from", "y_from")}
        for name, array in {**arrays, **self.hover}.items():
            if array is not None and np.shape(array) != (count,):
                raise ValueError(f"{self.name}: {name} must be [{count}]; got {list(np.shape(array))}")
        if self.labels and len(self.labels) != count:
            raise ValueError(f"{self.name}: labels must be {count}, or none; got {len(self.labels)}")
        if self.named and not self.labels:
            raise ValueError(f"{self.name}: named points need labels")


@dataclass(frozen=True)
class Rule:
    """A straight line across a panel: ``axis`` "y" at a height, "x" at a place, "diagonal" x = y."""

    axis: Literal["x", "y", "diagonal"]
    at: float = 0.0
    dash: Dash = "dot"
    colour: str = ""


@dataclass(frozen=True, eq=False)
class Panel:
    """Axes with series on them.

    Attributes:
        series: drawn in this order.
        title: above the panel.
        x_label, y_label: with units.
        x_range, y_range: None is what the series need.
        x_log, y_log: logarithmic axes.
        x_ticks, y_ticks: text at places, in place of numbers.
        rules: lines behind the series.
        flipped: the y axis runs downwards (rows of a list, the first at the top).
        horizontal: bars lie: ``y`` of a bar series is its place, ``x`` its length, ``low`` its foot.
        second: series of an axis at the right, with ``second_label``.
        square: one unit is as long on both axes.
    """

    series: tuple[Series, ...]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_log: bool = False
    y_log: bool = False
    x_ticks: tuple[tuple[float, str], ...] = ()
    y_ticks: tuple[tuple[float, str], ...] = ()
    rules: tuple[Rule, ...] = ()
    flipped: bool = False
    horizontal: bool = False
    second: tuple[Series, ...] = ()
    second_label: str = ""
    square: bool = False

    def spread(self, axis: Literal["x", "y"]) -> tuple[float, float]:
        """The range of an axis: as given, or what the series need and a little more; (0, 1) if there is nothing."""
        given = self.x_range if axis == "x" else self.y_range
        return given if given is not None else _spread(self.series, axis, self.x_log if axis == "x" else self.y_log)


@dataclass(frozen=True, eq=False)
class Chart:
    """Panels in rows, drawn as one figure.

    Attributes:
        rows: the panels; a row may be shorter than the first, never longer.
        title: what and whose.
        notes: sentences below the panels.
        height: of a panel over its width.

    Raises:
        ValueError: no panel, or a row longer than the first.
    """

    rows: tuple[tuple[Panel, ...], ...]
    title: str
    notes: tuple[str, ...] = ()
    height: float = 0.75

    def __post_init__(self) -> None:
        if not self.rows or not self.rows[0] or any(not 0 < len(row) <= len(self.rows[0]) for row in self.rows):
            raise ValueError(f"rows must not be empty nor longer than the first; got {[len(row) for row in self.rows]}")

    @property
    def panels(self) -> list[Panel]:
        """All panels, row by row."""
        return [panel for row in self.rows for panel in row]

    def to_frame(self) -> pd.DataFrame:
        """All that is drawn: panel, series, label, x, y, low, high."""
        import pandas as pd

        frames = [_frame(panel, series) for panel in self.panels for series in (*panel.series, *panel.second)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def draw(chart: Chart, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Draw a chart.

    Raises:
        ValueError: an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    if renderer == "plotly":
        from jola_interp.plots.screen_charts import draw_chart

        return draw_chart(chart)
    from jola_interp.plots.printed_charts import draw_chart as print_chart

    return print_chart(chart, width or 6.75)


def _spread(series: Sequence[Series], axis: str, log: bool) -> tuple[float, float]:
    names = (axis, f"{axis}_from", *(("low", "high") if axis == "y" else ()))
    arrays = [getattr(one, name) for one in series for name in names if getattr(one, name) is not None]
    values = np.concatenate([np.asarray(array, dtype=float) for array in arrays]) if arrays else np.empty(0)
    if axis == "y" and any(one.look == "bars" and one.low is None for one in series):
        values = np.append(values, 0.0)
    values = values[np.isfinite(values) & ((values > 0) if log else True)]
    if not len(values):
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log:
        return low / 1.25, high * 1.25
    pad = 0.05 * (high - low) or 0.5
    return low - pad, high + pad


def _frame(panel: Panel, series: Series) -> pd.DataFrame:
    import pandas as pd

    gaps = np.full(len(series.x), np.nan)
    return pd.DataFrame(
        {
            "panel": panel.title,
            "series": series.name,
            "label": list(series.labels) if series.labels else "",
            "x": series.x,
            "y": series.y,
            "low": gaps if series.low is None else series.low,
            "high": gaps if series.high is None else series.high,
        }
    )
