"""Panels of lines, points, bars and bands: one container that both renderers draw, so the two cannot disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from jola_interp.plots.style import BLUE

if TYPE_CHECKING:
    import pandas as pd

Look = Literal["line", "points", "bars", "band", "arrows"]
"""``line`` · ``points`` with error bars where ``low`` and ``high`` are given · ``bars`` from ``low`` (or 0) to y; with
``high`` too they begin at 0 and bear error bars · ``band`` between ``low`` and ``high`` · ``arrows`` from (``x_from``,
``y_from``) to (x, y)."""
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
        size: pixels of a point or of the width of a line; of bars, how thick in the units of their axis; None is what
            fits.
        opacity: in (0, 1]; a band left at 1 is pale all the same, since other series lie on it.
        legend: whether it stands in the legend.

    Raises:
        ValueError: arrays that are not [n], an unknown look, a look without the numbers that it needs, named points
            without labels or outside [0, n), or an opacity outside (0, 1].
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
        if outside := [index for index in self.named if not 0 <= index < count]:
            raise ValueError(f"{self.name}: named must be in 0 … {count - 1}; got {outside}")
        if not 0 < self.opacity <= 1:
            raise ValueError(f"{self.name}: opacity must be in (0, 1]; got {self.opacity}")

    @property
    def foot(self) -> Float[np.ndarray, " n"]:
        """[n] where bars begin: ``low``, where that is not the end of an error bar, or 0."""
        return np.zeros(len(self.x)) if self.low is None or self.high is not None else np.asarray(self.low)

    @property
    def arms(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]] | None:
        """The ends of the error bars of points and bars; None where there are none."""
        borne = self.look in ("points", "bars") and self.low is not None and self.high is not None
        return (np.asarray(self.low), np.asarray(self.high)) if borne else None

    @property
    def there(self) -> Bool[np.ndarray, " n"]:
        """[n] which points can be drawn: every number that the look is made of is finite."""
        made_of = {"band": ("low", "high"), "arrows": ("x", "y", "x_from", "y_from")}.get(self.look, ("x", "y"))
        mask = np.ones(len(self.x), dtype=bool)
        for array in (getattr(self, name) for name in made_of):
            mask &= np.isfinite(np.asarray(array, dtype=float))
        if self.look == "bars":
            mask &= np.isfinite(np.asarray(self.foot, dtype=float))
        return mask

    @property
    def alone(self) -> Bool[np.ndarray, " n"]:
        """[n] points between two gaps: they make no line, so a line has a dot there."""
        around = np.concatenate([[False], self.there, [False]])
        alone: np.ndarray = self.there & ~around[:-2] & ~around[2:]
        return alone


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
        horizontal: bars lie: ``y`` of a bar series is its place, ``x`` its length, ``low`` its foot. Error bars and
            bands lie too: ``low`` and ``high`` are places on the x axis.
        second: series of an axis at the right, with ``second_label`` and ``second_range``.
        square: one unit is as long on both axes; a range grows where it has to.

    Raises:
        ValueError: a logarithmic axis whose range reaches 0, or a diagonal or a square on one logarithmic axis.
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
    second_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, log, ends in (("x_range", self.x_log, self.x_range), ("y_range", self.y_log, self.y_range)):
            if log and ends is not None and min(ends) <= 0:
                raise ValueError(f"{name} of a logarithmic axis must be above 0; got {ends}")
        if self.x_log != self.y_log and (self.square or any(rule.axis == "diagonal" for rule in self.rules)):
            raise ValueError("square panels and diagonal rules need both axes linear, or both logarithmic")

    @property
    def everything(self) -> tuple[Series, ...]:
        """The series of both y axes."""
        return (*self.series, *self.second)

    @property
    def empty(self) -> bool:
        """Whether no point of any series can be drawn."""
        return not any(bool((series.there & self._above_zero(series)).any()) for series in self.everything)

    def spread(self, axis: Literal["x", "y", "second"]) -> tuple[float, float]:
        """The range of an axis: as given, or what series and rules need and a little more; (0, 1) if nothing does."""
        given = {"x": self.x_range, "y": self.y_range, "second": self.second_range}[axis]
        if given is not None:
            return given
        series = {"x": self.everything, "y": self.series, "second": self.second}[axis]
        values = [_needed(self, one, "x" if axis == "x" else "y") for one in series]
        values += [np.array([rule.at]) for rule in self.rules if rule.axis == axis]
        log = {"x": self.x_log, "y": self.y_log, "second": False}[axis]
        standing = (axis == "x") == self.horizontal and any(one.look == "bars" for one in series)
        return _widened(np.concatenate([np.empty(0), *values]), log, standing)

    def sides(self, series: Series) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """[n] the two sides of bars on the axis of their places: four fifths of the way to their neighbours."""
        places, log = _places(self, series), self._log("y" if self.horizontal else "x")
        if series.size is not None and not log:
            return places - series.size / 2, places + series.size / 2
        bars = [one for one in self.everything if one.look == "bars"]
        known = np.concatenate([_places(self, one) for one in bars])
        known = np.log10(known[known > 0]) if log else known
        half = 0.4 * _step(known, 0.1 if log else 1.0)
        return (places / 10**half, places * 10**half) if log else (places - half, places + half)

    def _log(self, axis: str) -> bool:
        return self.x_log if axis == "x" else self.y_log

    def _above_zero(self, series: Series) -> Bool[np.ndarray, " n"]:
        """[n] whether a point has a place on the axes that are logarithmic."""
        mask = np.ones(len(series.x), dtype=bool)
        on_axes = [*((series.x,) if self.x_log else ()), *((series.y,) if self.y_log and series in self.series else ())]
        for array in on_axes if series.look != "band" else []:
            mask &= np.asarray(array) > 0
        return mask


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

    @property
    def legend(self) -> list[Series]:
        """The first series of each name that is to be in the legend and has something to show."""
        found: dict[str, Series] = {}
        for series in (series for panel in self.panels for series in panel.everything):
            if series.legend and series.name and series.there.any():
                found.setdefault(series.name, series)
        return list(found.values())

    def to_frame(self) -> pd.DataFrame:
        """All that is drawn: panel, series, label, x, y, low, high; of arrows x_from and y_from too."""
        import pandas as pd

        frames = [_frame(panel, series) for panel in self.panels for series in panel.everything]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _needed(panel: Panel, series: Series, axis: str) -> Float[np.ndarray, " m"]:
    """The numbers of a series that an axis has to reach."""
    along = axis == ("x" if panel.horizontal else "y")  # the axis of lengths, not of places
    arrays = [getattr(series, axis), getattr(series, f"{axis}_from")]
    arrays += [series.low, series.high] if along else []
    if series.look == "band" and along:
        arrays = [series.low, series.high]
    if series.look == "bars":
        arrays += [series.foot] if along else panel.sides(series)
    known = [np.asarray(array, dtype=float) for array in arrays if array is not None]
    return np.concatenate(known)


def _widened(values: Float[np.ndarray, " m"], log: bool, standing: bool) -> tuple[float, float]:
    """A little more than the numbers; ``standing`` bars begin on the edge of the panel if they begin at 0."""
    values = values[np.isfinite(values) & ((values > 0) if log else True)]
    if not len(values):
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log:
        return low / 1.25, high * 1.25
    pad = 0.05 * (high - low) or 0.5
    return low if standing and low == 0 else low - pad, high if standing and high == 0 and low < 0 else high + pad


def _places(panel: Panel, series: Series) -> Float[np.ndarray, " n"]:
    return np.asarray(series.y if panel.horizontal else series.x, dtype=float)


def _step(places: Float[np.ndarray, " m"], alone: float) -> float:
    """The least distance between different places; ``alone`` where there is one place or none."""
    places = np.unique(places[np.isfinite(places)])
    steps = np.diff(places)
    steps = steps[steps > 1e-6 * np.ptp(places)] if len(steps) else steps  # the same place, but for rounding
    return float(steps.min()) if len(steps) else alone


def _frame(panel: Panel, series: Series) -> pd.DataFrame:
    import pandas as pd

    gaps = np.full(len(series.x), np.nan)
    begin = {} if series.look != "arrows" else {"x_from": series.x_from, "y_from": series.y_from}
    return pd.DataFrame(
        {
            "panel": panel.title,
            "series": series.name,
            "label": list(series.labels) if series.labels else "",
            "x": series.x,
            "y": series.y,
            "low": gaps if series.low is None else series.low,
            "high": gaps if series.high is None else series.high,
            **begin,
        }
    )
