"""Layer × head tables: one container holds what both renderers draw, so the two cannot disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from jola_interp.selection import STATUSES

if TYPE_CHECKING:
    import pandas as pd

GridKind = Literal["probability", "status", "magnitude", "signed"]
"""``probability`` values in [0, 1] · ``status`` codes of ``words`` · ``magnitude`` values ≥ 0 · ``signed`` values
around a true zero, on colours that reach equally far to both sides of it."""
Ticks = tuple[tuple[float, str], ...]
"""Text at places of an axis."""


@dataclass(frozen=True, eq=False)
class GridMap:
    """One number per layer and unit, with all that a figure says about it.

    Attributes:
        values: [layer, unit]; NaN where there is none.
        title: what the panel shows.
        labels: [layer, unit] names such as "L3H7".
        mask: [layer, unit] True where a unit is editable.
        range: the ends of the colour scale, whatever the values are (see :func:`reach`).
        kind: which scale of colours; see :data:`GridKind`.
        x_label, y_label: names of the axes.
        marked: [layer, unit] True where a cell is hatched (a gate that is neither open nor shut); None is nowhere.
        hatch: what the legend calls a hatched cell; "" is an undecided gate.
        texts: [layer, unit] what is written in the cells; None is nothing.
        square: cells are as high as they are wide.
        hover: more numbers per unit, by name, shown on hovering and in the table.
        group: units that share a key-value head, or 0 where they do not.
        categories: status codes that can occur (``status`` only).
        x_ticks, y_ticks: text at places (unit and layer indices), in place of numbers.
        unit: what the colour bar says; "" is "P(open)" for probabilities, else the title. Panels of one sheet that
            agree in kind, unit, range and ``log`` share a bar.
        flipped: row 0 at the top (attention patterns, lists).
        log: logarithmic colours (``magnitude`` only); cells of 0 are left blank.
        absent: what the legend calls a cell that ``mask`` leaves out; "" says nothing.
        words: what the codes mean (``status`` only); anything but the statuses has colours of its own.

    Raises:
        ValueError: arrays of different shapes, an unknown kind, or a range that is empty or does not suit the kind.
    """

    values: Float[np.ndarray, "layer unit"]
    title: str
    labels: np.ndarray
    mask: Bool[np.ndarray, "layer unit"]
    range: tuple[float, float]
    kind: GridKind
    x_label: str = "head"
    y_label: str = "layer"
    marked: Bool[np.ndarray, "layer unit"] | None = None
    hatch: str = ""
    texts: np.ndarray | None = None
    square: bool = False
    hover: Mapping[str, Float[np.ndarray, "layer unit"]] = field(default_factory=dict)
    group: int = 0
    categories: tuple[int, ...] = ()
    x_ticks: Ticks = ()
    y_ticks: Ticks = ()
    unit: str = ""
    flipped: bool = False
    log: bool = False
    absent: str = "not editable"
    words: tuple[str, ...] = STATUSES

    def __post_init__(self) -> None:
        if self.kind not in get_args(GridKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(GridKind))}; got {self.kind!r}")
        if self.values.ndim != 2 or not self.values.size:
            raise ValueError(f"values must be [layer, unit] and not empty; got shape {list(self.values.shape)}")
        beside = {"labels": self.labels, "mask": self.mask, "marked": self.marked, "texts": self.texts, **self.hover}
        for name, array in beside.items():
            if array is not None and array.shape != self.values.shape:
                raise ValueError(f"{name} must have the shape of values, {self.values.shape}; got {array.shape}")
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range must be (low, high) with low < high; got {self.range}")
        if self.kind == "signed" and not self.range[0] < 0 < self.range[1]:
            raise ValueError(f"range must have 0 within it where kind is 'signed'; got {self.range}")
        if self.log and (self.kind != "magnitude" or self.range[0] <= 0):
            raise ValueError(f"log needs kind 'magnitude' and a range above 0; got {self.kind!r} and {self.range}")

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, units a layer)."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the colours: ``range``, widened to the same distance on both sides of zero if ``signed``."""
        low, high = self.range
        bound = max(-low, high)
        return (-bound, bound) if self.kind == "signed" else (low, high)

    @property
    def measure(self) -> str:
        """What the colour bar says."""
        return self.unit or ("P(open)" if self.kind == "probability" else self.title)

    @property
    def blank(self) -> Bool[np.ndarray, "layer unit"]:
        """[layer, unit] True where nothing is drawn: NaN, and 0 on logarithmic colours."""
        return np.asarray(~np.isfinite(self.values) | (self.values <= 0 if self.log else False))

    @property
    def hatched(self) -> tuple[np.ndarray, np.ndarray]:
        """(layers, units) of what is marked."""
        marked = np.zeros(self.shape, dtype=bool) if self.marked is None else self.marked
        layers, units = np.nonzero(marked)
        return layers, units

    def counts(self) -> dict[str, int]:
        """Status to number of units, in the order of ``categories`` (``status`` only)."""
        return {self.words[code]: int((self.values == code).sum()) for code in self.categories}

    def names(self) -> np.ndarray:
        """[layer, unit] statuses in words, "" where there is none (``status`` only)."""
        known = np.array([*self.words, ""], dtype=object)
        return known[np.where(np.isnan(self.values), len(self.words), self.values).astype(np.int64)]

    def margin(self) -> Float[np.ndarray, "series layer"]:
        """What stands beside each row: its mean; for ``status`` the number of units of each category but the first.

        A row without any value has NaN, or counts of 0.
        """
        if self.kind == "status":
            return np.array([(self.values == code).sum(1) for code in self.categories[1:]], dtype=float)
        known = np.isfinite(self.values)
        sums = np.where(known, self.values, 0).sum(1, dtype=float)
        return np.where(known.any(1), sums / np.maximum(known.sum(1), 1), np.nan)[None]

    def to_frame(self) -> pd.DataFrame:
        """One row per editable unit: label, layer, unit, value (a status in words), marked, and the hover columns."""
        import pandas as pd

        layers, units = np.nonzero(self.mask)
        shown = self.names() if self.kind == "status" else self.values
        table = {"label": self.labels[layers, units], "layer": layers, "unit": units, "value": shown[layers, units]}
        table |= {name: array[layers, units] for name, array in self.hover.items()}
        if self.marked is not None:
            table["marked"] = self.marked[layers, units]
        return pd.DataFrame(table)


@dataclass(frozen=True, eq=False)
class Sheet:
    """Panels in rows and columns, drawn as one figure.

    Attributes:
        rows: the panels; every row has as many as the first.
        title: what and whose.
        notes: sentences below the panels.
        headings: one per column; they then stand above the first row in place of the panels' own titles.
        names: one per row; they then stand beside the vertical axes.
        margin: beside each map of more than one unit a bar per layer: see :meth:`GridMap.margin`.

    Raises:
        ValueError: rows, headings or names that do not fit each other.
    """

    rows: tuple[tuple[GridMap, ...], ...]
    title: str
    notes: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    margin: bool = False

    def __post_init__(self) -> None:
        if not self.rows or not self.rows[0] or any(len(row) != len(self.rows[0]) for row in self.rows):
            raise ValueError(f"rows must be equally long and not empty; got lengths {[len(r) for r in self.rows]}")
        for name, expected in (("headings", len(self.rows[0])), ("names", len(self.rows))):
            if (found := len(getattr(self, name))) not in (0, expected):
                raise ValueError(f"{name} must have {expected} entries, or none; got {found}")

    def title_at(self, row: int, column: int) -> str:
        """What stands above a panel."""
        if not self.headings:
            return self.rows[row][column].title
        return self.headings[column] if row == 0 else ""

    def label_at(self, row: int) -> str:
        """What stands beside the vertical axis of a row."""
        label = self.rows[row][0].y_label
        return f"{self.names[row]} · {label}" if self.names else label

    @property
    def panels(self) -> list[GridMap]:
        """All panels, row by row."""
        return [panel for row in self.rows for panel in row]

    def to_frame(self) -> pd.DataFrame:
        """The panels' tables below each other; column ``panel`` says which."""
        import pandas as pd

        frames = [panel.to_frame().assign(panel=panel.title) for panel in self.panels]
        # A status is a word and a probability a number: one column holds both only as objects.
        return pd.concat([frame.astype({"value": object}) for frame in frames], ignore_index=True)


def reach(kind: GridKind, *values: Float[np.ndarray, "*shape"], log: bool = False) -> tuple[float, float]:
    """A ``range`` that holds all of ``values``, for panels that are to be compared.

    probability: (0, 1) · status: (0, 3), its codes · signed: ±max |value| · magnitude: (0, max), or (min above 0, max)
    where ``log``. Where that would be empty (no value, or zeros alone): up to 1.
    """
    if kind == "probability":
        return 0.0, 1.0
    if kind == "status":
        return 0.0, float(len(STATUSES) - 1)
    known = np.abs(np.concatenate([np.ravel(array) for array in values] or [np.empty(0)]).astype(float))
    known = known[np.isfinite(known) & (known > 0)]
    high = float(known.max()) if known.size else 1.0
    if kind == "signed":
        return -high, high
    low = float(known.min()) if known.size else high / 10
    return (min(low, high / 10) if log else 0.0), high
