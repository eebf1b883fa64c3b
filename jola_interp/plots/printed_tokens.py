"""Tokens with matplotlib: boxes of a fixed-width font in lines, at the width of a column or a page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle

from jola_interp.analysis.token_strips import TokenStrip
from jola_interp.plots import style
from jola_interp.plots.printed import (
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
from jola_interp.plots.token_colours import colours, ink, steps

MARGIN, ROW, GAP, HEAD, KEY = 0.06, 0.15, 0.012, 0.06, 0.36
"""Inches around the figure, a line of tokens, between two tokens, above a heading, and for the colour bar."""
FONT, SANS = "DejaVu Sans Mono", "DejaVu Sans"
CELL = SMALL * 0.602 / 72
"""Width of a character, inches."""
MISSING = "▯"
"""What stands for a character that the font lacks."""


@dataclass(frozen=True)
class Box:
    """A token's place in inches from the left edge and from the top."""

    place: int
    text: str
    left: float
    top: float
    width: float


@dataclass(frozen=True)
class Layout:
    """Everything between title and notes, from the top down.

    Attributes:
        headings: (lines, distance from the top) of each row.
        boxes: of all tokens.
        height: of all of it.
        missing: whether a character had to be replaced.
    """

    headings: list[tuple[list[str], float]]
    boxes: list[Box]
    height: float
    missing: bool


@in_style
def draw_strip(strip: TokenStrip, width: float) -> Figure:
    """A strip at ``width`` inches: its rows in lines, the colour bar below them, the notes last."""
    title = title_lines(printable(strip.title, SANS), width - 2 * MARGIN)
    layout = _layout(strip, width)
    notes = list(strip.notes)
    if layout.missing:
        notes.append(f"{MISSING}: a character that {FONT} lacks.")
    lines = note_lines(notes, width - 2 * MARGIN)
    top = 0.06 + 0.15 * len(title)
    height = top + layout.height + KEY + LINE * len(lines) + 0.08
    figure = new_figure(width, height)
    add_lines(figure, title, MARGIN, height - 0.06, TITLE)
    for heading, down in layout.headings:
        add_lines(figure, heading, MARGIN, height - top - down, SMALL)
    axes = add_axes(figure, 0, height - top - layout.height, width, layout.height)
    _draw_boxes(axes, strip, layout, width)
    _draw_key(figure, strip, (MARGIN, height - top - layout.height - 0.16), width)
    add_lines(figure, lines, MARGIN, 0.05 + LINE * len(lines), SMALL)
    return figure


def _layout(strip: TokenStrip, width: float) -> Layout:
    """Break the rows into lines: behind every ↵, and where the next token would not fit."""
    headings: list[tuple[list[str], float]] = []
    boxes: list[Box] = []
    down, most = 0.0, int((width - 2 * MARGIN) / CELL)
    for row, heading in enumerate(strip.headings):
        down += HEAD
        lines = note_lines([printable(heading, SANS)], width - 2 * MARGIN)
        headings.append((lines, down))
        down += LINE * len(lines) + 0.03
        left = MARGIN
        for place in np.flatnonzero(strip.row == row):
            text = _cut(printable(strip.text[place], FONT), most)
            wide = len(text) * CELL
            if left > MARGIN and left + wide > width - MARGIN:
                left, down = MARGIN, down + ROW
            boxes.append(Box(int(place), text, left, down, wide))
            left += wide + GAP
            if strip.breaks[place]:
                left, down = MARGIN, down + ROW
        down += ROW if left > MARGIN else 0
    missing = any(MISSING in box.text and MISSING not in strip.text[box.place] for box in boxes)
    return Layout(headings, boxes, down, missing)


def _draw_boxes(axes: Axes, strip: TokenStrip, layout: Layout, width: float) -> None:
    axes.set_xlim(0, width)
    axes.set_ylim(layout.height, 0)
    axes.set_axis_off()
    axes.set_label("tokens")
    scale, chosen = colours(strip.kind), steps(strip.levels, strip.kind)
    for box in layout.boxes:
        step = int(chosen[box.place])
        corner, size = (box.left, box.top + 0.01), (box.width, ROW - 0.035)
        if step < 0:
            look = {"facecolor": "white", "edgecolor": style.GREY, "linewidth": 0.4, "hatch": "//////"}
            axes.add_patch(Rectangle(corner, *size, **look))  # type: ignore[arg-type]
            axes.add_patch(Rectangle(corner, *size, facecolor="white", alpha=0.6, linewidth=0))
        else:
            axes.add_patch(Rectangle(corner, *size, facecolor=scale[step], linewidth=0))
        if strip.answer[box.place]:
            below = box.top + ROW - 0.017
            axes.plot([box.left, box.left + box.width], [below, below], color=style.INK, linewidth=0.9)
        axes.text(
            box.left, box.top + ROW / 2 - 0.006, box.text, family=FONT, fontsize=SMALL, ha="left",
            va="center_baseline", parse_math=False, color=style.INK if step < 0 else ink(scale[step]),
        )  # fmt: skip


def _draw_key(figure: Figure, strip: TokenStrip, corner: tuple[float, float], width: float) -> None:
    """The colour bar with its ends and zero, what it means, and what hatching and the line below tokens mean."""
    left, bottom = corner
    bar = add_axes(figure, left, bottom, min(1.6, width / 2 - left), 0.07)
    bar.set_label("colour bar")
    low, high = strip.ends
    signed = strip.kind == "signed"
    norm = Normalize(-strip.limit if signed else 0, strip.limit)
    drawn = figure.colorbar(ScalarMappable(norm, ListedColormap(colours(strip.kind))), bar, orientation="horizontal")
    drawn.set_ticks([-strip.limit, 0, strip.limit] if signed else [0, strip.limit])
    drawn.set_ticklabels([low, "0", high] if signed else [low, high])
    ends = drawn.ax.get_xticklabels()
    ends[0].set_horizontalalignment("left")
    ends[-1].set_horizontalalignment("right")
    drawn.outline.set_visible(False)
    words = [f"{strip.unit}{' (blue: less likely, orange: likelier)' if signed else ''}"]
    words.append("hatched: first token" + (", underlined: answer" if strip.answer.any() else ""))
    room = width - MARGIN - left - min(1.6, width / 2 - left) - 0.12
    add_lines(figure, note_lines(["; ".join(words)], room), width - MARGIN - room, bottom + 0.12, SMALL)


def printable(text: str, font: str) -> str:
    """The text with a box for every character that ``font`` lacks."""
    known = _characters(font)
    return "".join(character if ord(character) in known else MISSING for character in text)


@cache
def _characters(font: str) -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=font))).get_charmap())


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
