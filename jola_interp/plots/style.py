"""What both renderers agree on: colours, ticks, and where a label goes when its place is taken."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jola_interp.analysis import Trajectories
from jola_interp.convergence import UNDECIDED

Renderer = Literal["plotly", "matplotlib"]

# Okabe and Ito's colours: told apart with any colour vision, and in grey.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY = "#CC79A7", "#56B4E9"
LINES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
KINDS = {"additive": BLUE, "multiplicative": ORANGE, "shared": GREEN}
NONE = "rgba(128,128,128,0.26)"
"""On screen; it recedes on white and on black. :data:`STATUSES` has what it looks like on white."""
STATUSES = ("#DEDEDE", BLUE, ORANGE, GREEN)
"""Colours of the codes none, additive, multiplicative, both."""
NO_UNIT = "rgba(128,128,128,0.1)"
"""Behind cells: what shows where a unit is not editable, on white and on black."""
GREY, INK = "#8C8C8C", "#222222"
SCALES = {"probability": "cividis", "magnitude": "viridis"}
SHARE = "sendChartToCloud"
"""plotly's button that sends a figure and its data to a server: figures of this package stay on the machine."""
HATCHED = "undecided gate"
WIDTHS = (3.25, 6.75)
"""One and two columns of a page, in inches."""


def require(renderer: str, width: float | None) -> None:
    """Refuse an unknown renderer, and a width that does not go with it.

    Raises:
        ValueError: says which renderers there are, and what a width may be.
    """
    if renderer not in ("plotly", "matplotlib"):
        raise ValueError(f"renderer must be plotly or matplotlib; got {renderer!r}")
    if width is not None and renderer == "plotly":
        raise ValueError("width is the printed width in inches: pass renderer='matplotlib' with it")
    if width is not None and not 2 <= width <= 20:
        raise ValueError(f"width must be between 2 and 20 inches (a column is 3.25, a page 6.75); got {width}")


def tick_places(length: int, most: int, group: int = 0) -> list[int]:
    """At most ``most`` of the places 0 … length − 1, evenly spaced by 1, 2, 5, 10, … or by whole groups."""
    if group:
        steps = [group * 2**power for power in range(12)]
    else:
        steps = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
    step = next(step for step in steps if (length - 1) // step + 1 <= max(most, 1))
    return list(range(0, length, step))


def separators(units: int, group: int) -> list[float]:
    """Where thin lines part the key-value groups."""
    return [place - 0.5 for place in range(group, units, group)] if group else []


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """``values`` moved apart to at least ``gap`` within [low, high], in their order, each as near as that allows."""
    order = np.argsort(values, kind="stable")
    places = np.asarray(values, dtype=float)[order]
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if len(places):
        places[-1] = min(places[-1], high)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - gap)
    moved = np.empty_like(places)
    moved[order] = np.maximum(places, low + gap * np.arange(len(places)))
    return [float(place) for place in moved]


def wrapped(sentences: Sequence[str], characters: int) -> list[str]:
    """Sentences as lines of at most so many characters."""
    return textwrap.wrap(" ".join(sentences), max(characters, 20))


def clamp(value: float, low: float, high: float) -> float:
    """``value`` within [low, high]."""
    return max(low, min(high, value))


def status_scale() -> list[list[Any]]:
    """The status colours on screen as a colour scale in steps over the codes −½ … 3½."""
    count = len(STATUSES)
    colours = (NONE, *STATUSES[1:])
    return [[(i + end) / count, colour] for i, colour in enumerate(colours) for end in (0, 1)]


def trajectory_notes(tables: Sequence[Trajectories]) -> list[str]:
    """What the lines of a figure of trajectories mean."""
    notes = list(dict.fromkeys(note for table in tables for note in (*table.notes, table.reach()) if note))
    low, high = UNDECIDED
    notes.append(f"Dotted: P(open) = {low:g} and {high:g}, between which a gate is undecided.")
    if tables[0].kept != tables[0].steps[-1]:
        notes.append(f"Dashed: step {tables[0].kept}, which the Run keeps.")
    return notes
