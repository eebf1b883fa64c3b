"""What all matplotlib figures share: sizes in inches, fonts, title and notes. No global style is read or left."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jola_interp.plots import style

TITLE, LABEL, SMALL = 8.0, 7.0, 6.0
"""Font sizes in points; nothing is smaller."""
LINE = 0.12
"""Height of a line of small text, inches."""
STYLE: Any = {
    "pdf.fonttype": 42,  # TrueType, embedded
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "jola_interp",  # the same identifiers every time
    "font.family": "DejaVu Sans",
    "font.size": LABEL,
    "axes.labelsize": LABEL,
    "axes.labelpad": 2.0,
    "axes.titlesize": LABEL,
    "axes.linewidth": 0.5,
    "axes.edgecolor": "#444444",
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.4,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.pad": 1.5,
    "ytick.major.pad": 1.5,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "lines.solid_capstyle": "butt",
}
P = ParamSpec("P")


class PrintFigure(Figure):
    """A matplotlib figure that pyplot knows nothing of: shown as the value of a notebook cell, and never twice."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        with printing():
            self.savefig(content, format="png", dpi=200)
        return content.getvalue()


@contextmanager
def printing() -> Iterator[None]:
    """seaborn's style for papers and the one above, whatever the user has set; afterwards, what the user has set."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(seaborn.axes_style("ticks") | seaborn.plotting_context("paper"))
        matplotlib.rcParams.update(STYLE)
        yield


def in_style(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a drawing function under :func:`printing`."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with printing():
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # ticks take their style when first drawn, which should be now
        return figure

    return drawn


def new_figure(width: float, height: float) -> PrintFigure:
    """An empty figure of so many inches."""
    return PrintFigure(figsize=(width, height), facecolor="white")


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the lower left corner."""
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))


def add_text(figure: Figure, text: str, left: float, bottom: float, **options: Any) -> None:
    """Text at a place in inches, as it stands: a dollar sign from the data is no formula."""
    width, height = figure.get_size_inches()
    figure.text(left / width, bottom / height, text, parse_math=False, **options)


def note_lines(notes: Sequence[str], width: float) -> list[str]:
    """Notes as lines that fit so many inches."""
    return style.wrapped(notes, int(width * 72 / (SMALL * 0.56)))


def title_lines(title: str, width: float) -> list[str]:
    """A title as lines that fit so many inches."""
    return style.wrapped([title], int(width * 72 / (TITLE * 0.57)))


def add_lines(figure: Figure, lines: Sequence[str], left: float, top: float, size: float) -> None:
    """Lines of text below each other, the first under ``top``."""
    if lines:
        add_text(figure, "\n".join(lines), left, top, fontsize=size, va="top", ha="left", linespacing=1.25)
