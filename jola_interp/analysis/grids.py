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

GridKind = Literal["probability", "status", "magnitude"]
"""``probability`` values in [0, 1] · ``status`` codes into ``selection.STATUSES`` · ``magnitude`` values ≥ 0."""


@dataclass(frozen=True, eq=False)
class GridMap:
    """One number per layer and unit, with all that a figure says about it.

    Attributes:
        values: [layer, unit]; NaN where there is none.
        title: what the panel shows.
        labels: [layer, unit] names such as "L3H7".
        mask: [layer, unit] True where a unit is editable.
        range: the ends of the colour scale, whatever the values are.
        kind: which scale of colours; see :data:`GridKind`.
        x_label, y_label: names of the axes.
        marked: [layer, unit] True where a cell is hatched (a gate that is neither open nor shut); None is nowhere.
        hover: more numbers per unit, by name, shown on hovering and in the table.
        group: units that share a key-value head, or 0 where they do not.
        categories: status codes that can occur (``status`` only).

    Raises:
        ValueError: arrays of different shapes, an unknown kind, or an empty range.
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
    hover: Mapping[str, Float[np.ndarray, "layer unit"]] = field(default_factory=dict)
    group: int = 0
    categories: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(GridKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(GridKind))}; got {self.kind!r}")
        if self.values.ndim != 2 or not self.values.size:
            raise ValueError(f"values must be [layer, unit] and not empty; got shape {list(self.values.shape)}")
        beside = {"labels": self.labels, "mask": self.mask, "marked": self.marked, **self.hover}
        for name, array in beside.items():
            if array is not None and array.shape != self.values.shape:
                raise ValueError(f"{name} must have the shape of values, {self.values.shape}; got {array.shape}")
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range must be (low, high) with low < high; got {self.range}")

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, units a layer)."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def hatched(self) -> tuple[np.ndarray, np.ndarray]:
        """(layers, units) of what is marked."""
        marked = np.zeros(self.shape, dtype=bool) if self.marked is None else self.marked
        layers, units = np.nonzero(marked)
        return layers, units

    def counts(self) -> dict[str, int]:
        """Status to number of units, in the order of ``categories`` (``status`` only)."""
        return {STATUSES[code]: int((self.values == code).sum()) for code in self.categories}

    def names(self) -> np.ndarray:
        """[layer, unit] statuses in words, "" where there is none (``status`` only)."""
        known = np.array([*STATUSES, ""], dtype=object)
        return known[np.where(np.isnan(self.values), len(STATUSES), self.values).astype(np.int64)]

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

    Raises:
        ValueError: rows, headings or names that do not fit each other.
    """

    rows: tuple[tuple[GridMap, ...], ...]
    title: str
    notes: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

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
