"""Where the parts of a chart go, in pixels or in inches alike: ranges, ticks, room for text, labels beside points."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jola_interp.plots.chart import Panel, Rule, Series
from jola_interp.plots.style import clamp

NOTHING = "nothing to show"
"""What stands in a panel without a point."""
PALE = 0.22
"""Opacity of a band, unless a series says otherwise."""
LEADING = 1.3
"""From a line of text to the next, in sizes of the text."""
_NARROW, _WIDE = frozenset("ijltfr.,:;'|!()[]{}I·`\"- "), frozenset("mwMW@%—…−+=<>~&#↵")
Rows = Sequence[Sequence[Panel]]
Tick = tuple[float, str]


@dataclass(frozen=True)
class Ruler:
    """Sizes of one renderer, in its unit.

    Attributes:
        small: text of ticks and of named points.
        label: text of axis labels and panel titles.
        pad: from an axis to its text, and from a point to its label.
        gap: between neighbouring panels.
        left, below: least room at the left of the panels and below them.
        names: the widest that the text of a tick may be.
        tallest: panels with a line of text per row grow up to here.
    """

    small: float
    label: float
    pad: float
    gap: float
    left: float
    below: float
    names: float
    tallest: float


class Room(NamedTuple):
    """What a panel's text takes around it."""

    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Words:
    """The text of a panel, fitted to its size: lines, ticks that do not touch, and the room that all of it takes.

    Attributes:
        title, x_label, y_label, second_label: lines.
        x_ticks, y_ticks: as many of the given ones as fit, lines parted by a newline; empty is numbers.
        upright: the text of the x ticks runs upwards.
        y_named: whether the y axis has its text; not beside a panel with the same one.
    """

    title: list[str]
    x_label: list[str]
    y_label: list[str]
    second_label: list[str]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    upright: bool
    y_named: bool
    room: Room


@dataclass(frozen=True, eq=False)
class Frame:
    """A panel in its place: lower left corner and size, in units from that of the grid; the ranges of its axes."""

    panel: Panel
    left: float
    bottom: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    second_range: tuple[float, float]
    words: Words

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The panel's, and the line on which bars stand that go both ways."""
        panel = self.panel
        ends, log = (self.x_range, panel.x_log) if panel.horizontal else (self.y_range, panel.y_log)
        standing = any(series.look == "bars" for series in panel.series) and not log and ends[0] < 0 < ends[1]
        return (*panel.rules, *((Rule("x" if panel.horizontal else "y", 0.0, "solid"),) if standing else ()))

    def whole(self, axis: Literal["x", "y"]) -> bool:
        """Whether an axis of places counts something, so that its ticks are whole numbers."""
        panel = self.panel
        if axis != ("y" if panel.horizontal else "x"):
            return False
        bars = [one for one in panel.everything if one.look == "bars"]  # what is around them may reach to their edges
        arrays = [np.asarray(getattr(one, axis), dtype=float)[one.there] for one in bars or panel.everything]
        return not panel.empty and all(bool((values == np.round(values)).all()) for values in arrays)

    def at(
        self, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], second: bool = False
    ) -> Float[np.ndarray, "n 2"]:
        """[n, 2] places in units from the panel's lower left corner; NaN where a logarithmic axis has none."""
        panel = self.panel
        across = _fraction(x, self.x_range, panel.x_log)
        ends, log = (self.second_range, False) if second else (self.y_range, panel.y_log)
        up = _fraction(y, ends, log)
        up = 1 - up if panel.flipped and not second else up
        return np.stack([across * self.width, up * self.height], axis=-1)


@dataclass(frozen=True)
class Grid:
    """All panels in their places, and the size of what they and their text take."""

    frames: list[Frame]
    size: tuple[float, float]


@dataclass(frozen=True)
class Beside:
    """A label of a point: how far from the point its near end is, and whether it had to move away from its height."""

    x: float
    y: float
    text: str
    second: bool
    offset: tuple[float, float]
    align: str
    moved: bool


# -- text ----------------------------------------------------------------------------------------------------------


def em(text: str) -> float:
    """About how wide a text is, in sizes of its font; rather too wide than too narrow."""
    return sum(_em(character) for character in text)


def _em(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF" or character in _WIDE:
        return 1.0
    if character in _NARROW:
        return 0.4
    return 0.72 if character.isupper() else 0.63


def folded(text: str, most: float, lines: int = 3) -> list[str]:
    """A text as at most so many lines of at most ``most`` em; what is left out is an ellipsis."""
    if em(text) <= most:
        return [text] if text else []
    found: list[str] = []
    for piece in (piece for word in re.findall(r"\s*\S+(?: %)?", text) for piece in _pieces(word, most)):
        if found and em(found[-1] + piece) <= most:
            found[-1] += piece
        else:
            found.append(piece.lstrip())
    if len(found) <= lines:
        return found
    return [*found[: lines - 1], _shortened(" ".join(found[lines - 1 :]), most)]


def _pieces(word: str, most: float) -> Iterator[str]:
    """A word, broken where it is wider than a line."""
    piece, width = "", 0.0
    for character in word:
        if piece and width + _em(character) > most:
            yield piece
            piece, width = "", 0.0
        piece, width = piece + character, width + _em(character)
    yield piece


def _shortened(text: str, most: float) -> str:
    """A text of at most ``most`` em, with an ellipsis for what is left out."""
    if em(text) <= most:
        return text
    while text and em(text) > most - 1:
        text = text[:-1]
    return text + "…"


def names_of(panel: Panel, series: Series) -> tuple[str, ...]:
    """What each point of a series is: its label, or the text of the ticks that all its points stand at."""
    if series.labels:
        return series.labels
    axis = named_axis(panel, series)
    if not axis:
        return ()
    ticks = panel.x_ticks if axis == "x" else panel.y_ticks
    places = np.array([place for place, _ in ticks])
    nearest = [int(np.argmin(np.abs(places - value))) for value in np.nan_to_num(getattr(series, axis))]
    return tuple(ticks[index][1] for index in nearest)


def named_axis(panel: Panel, series: Series) -> str:
    """The axis whose ticks name the points of a series: "x", "y" or ""."""
    for axis, ticks in (("x", panel.x_ticks), ("y", panel.y_ticks)):
        values = np.asarray(getattr(series, axis), dtype=float)[series.there]
        if not ticks or not len(values):
            continue
        apart = np.abs(values[:, None] - np.array([place for place, _ in ticks])).min(axis=1)
        of_bars = series.look == "bars" and axis == ("y" if panel.horizontal else "x")
        if (apart <= (0.5 if of_bars else 1e-9)).all():
            return axis
    return ""


# -- the grid ------------------------------------------------------------------------------------------------------


def broken(rows: Rows, most: int) -> list[list[Panel]]:
    """Rows of at most ``most`` panels: longer ones go on below, in rows of about the same number."""
    longest = max(len(row) for row in rows)
    columns = -(-longest // -(-longest // most))
    return [list(row[start : start + columns]) for row in rows for start in range(0, len(row), columns)]


def arrange(rows: Rows, ratio: float, ruler: Ruler, inner: float) -> Grid:
    """Panels ``inner`` wide in rows and columns, each row and column with the room that its text takes.

    Args:
        ratio: height of a panel over its width; higher where each of its rows is named.
    """
    heights = [max(_height(panel, inner, ratio, ruler) for panel in row) for row in rows]
    words = [
        [
            _words(panel, (inner, height), ruler, named=not (i and _same_y(row[i - 1], panel)))
            for i, panel in enumerate(row)
        ]
        for row, height in zip(rows, heights, strict=True)
    ]
    columns = [[row[i].room for row in words if i < len(row)] for i in range(max(map(len, words)))]
    lefts, left = [], 0.0
    for index, rooms in enumerate(columns):
        left += max([room.left for room in rooms] + ([] if index else [ruler.left]))
        lefts.append(left)
        left += inner + max(room.right for room in rooms) + (ruler.gap if index + 1 < len(columns) else 0)
    bottoms, bottom = [0.0] * len(rows), 0.0
    for index in reversed(range(len(rows))):
        rooms = [one.room for one in words[index]]
        bottom += max([room.bottom for room in rooms] + ([ruler.below] if index + 1 == len(rows) else []))
        bottoms[index] = bottom
        bottom += heights[index] + max(room.top for room in rooms) + (ruler.gap / 2 if index else 0)
    frames = [
        _frame(panel, (lefts[j], bottoms[i]), (inner, heights[i]), words[i][j], ruler)
        for i, row in enumerate(rows)
        for j, panel in enumerate(row)
    ]
    return Grid(frames, (left, bottom))


def _frame(panel: Panel, corner: tuple[float, float], size: tuple[float, float], words: Words, ruler: Ruler) -> Frame:
    return Frame(panel, *corner, *size, *_ranges(panel, size, ruler), panel.spread("second"), words)


def _ranges(panel: Panel, size: tuple[float, float], ruler: Ruler) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of both axes; bars leave room for their names; in square panels the one that has room to spare shows more."""
    x, y = panel.spread("x"), panel.spread("y")
    if panel.horizontal and not panel.x_log and panel.x_range is None:
        x = _reaching(panel, x, size, ruler)
    if not panel.horizontal and not panel.y_log and panel.y_range is None:
        y = _reaching(panel, y, size, ruler)
    if not panel.square:
        return x, y
    ends = np.array([x, y]) if not panel.x_log else np.log10([x, y])
    spans = ends[:, 1] - ends[:, 0]
    more = (np.max(spans / size) * np.array(size) - spans) / 2
    grown = ends + more[:, None] * np.array([-1, 1])
    (low, high), (bottom, top) = (grown if not panel.x_log else 10**grown).tolist()
    return (low, high), (bottom, top)


def _reaching(panel: Panel, ends: tuple[float, float], size: tuple[float, float], ruler: Ruler) -> tuple[float, float]:
    """The range of the lengths of bars, wider where a name beyond an end needs it."""
    (low, high), length = ends, size[0] if panel.horizontal else size[1]
    for series, index in 6 * _named_bars(panel):  # each name makes those before it narrower: six rounds settle it
        text = em(_label(panel, series, index, size[0], ruler)) if panel.horizontal else 1.2
        share = (text * ruler.small + 1.2 * ruler.pad) / length
        end = float((series.x if panel.horizontal else series.y)[index])
        if end < series.foot[index]:
            low = min(low, high - (high - end) / (1 - share))
        else:
            high = max(high, low + (end - low) / (1 - share))
    return low, high


def _named_bars(panel: Panel) -> list[tuple[Series, int]]:
    bars = [series for series in panel.series if series.look == "bars"]
    return [(series, index) for series in bars for index in series.named if series.there[index]]


def _label(panel: Panel, series: Series, index: int, width: float, ruler: Ruler) -> str:
    """A label that does not take too much of a panel; beside lying bars that go both ways there is least room."""
    share = 0.5
    if panel.horizontal and series.look == "bars":
        ways = {bool(one.x[i] < one.foot[i]) for one, i in _named_bars(panel)}
        share = 0.3 if len(ways) > 1 else 0.45
    return _shortened(series.labels[index], share * width / ruler.small)


def _same_y(left: Panel, right: Panel) -> bool:
    """Whether the panel at the right can do without the text of its y axis."""
    like = ("y_label", "y_ticks", "y_log", "flipped", "square", "horizontal")
    same = all(getattr(left, name) == getattr(right, name) for name in like) and not (left.square or left.second)
    grows = any(series.look == "bars" and series.named for series in (*left.series, *right.series))
    return same and (left.horizontal or not grows) and left.spread("y") == right.spread("y")


def _height(panel: Panel, inner: float, ratio: float, ruler: Ruler) -> float:
    """Of a panel: as wide as ``ratio`` says, but high enough for the names of its rows."""
    if len(panel.y_ticks) < 2:
        return inner * ratio
    low, high = panel.spread("y")
    step = float(np.median(np.diff(sorted(place for place, _ in panel.y_ticks))))
    lines = max(len(folded(text, ruler.names / ruler.small, 2)) for _, text in panel.y_ticks)
    wanted = (high - low) / step * (lines * LEADING + 0.1) * ruler.small if step > 0 and not panel.y_log else 0.0
    return max(inner * ratio, min(wanted, ruler.tallest))


# -- the text of a panel -------------------------------------------------------------------------------------------


def _words(panel: Panel, size: tuple[float, float], ruler: Ruler, named: bool) -> Words:
    (width, height), line = size, ruler.label * LEADING
    x_range, y_range = _ranges(panel, size, ruler)
    x_ticks, upright, x_depth, overhang = _x_words(panel, x_range, width, ruler)
    y_ticks, y_depth = _y_words(panel, y_range, height, ruler)
    y_label = folded(panel.y_label, (height + line) / ruler.label)
    second_label = folded(panel.second_label, (height + line) / ruler.label)
    x_label = folded(panel.x_label, (width + ruler.gap) / ruler.label)
    left = y_depth + len(y_label) * line + 2 * ruler.pad if named else ruler.pad
    right = ruler.small
    if panel.second:
        right = _numbers(panel.spread("second"), False) * ruler.small + len(second_label) * line + 2 * ruler.pad
    left, right = max(left, overhang[0]), max(right, overhang[1])
    title = folded(panel.title, (width + right) / ruler.label)
    room = Room(left, right, len(title) * line + ruler.pad / 2, x_depth + len(x_label) * line + 2 * ruler.pad)
    return Words(title, x_label, y_label, second_label, x_ticks, y_ticks, upright, named, room)


def _x_words(
    panel: Panel, ends: tuple[float, float], width: float, ruler: Ruler
) -> tuple[list[Tick], bool, float, tuple[float, float]]:
    """Ticks, whether their text runs upwards, how deep it is, and how far it reaches beyond the panel."""
    ticks = _within(panel.x_ticks, ends)
    if not ticks:
        return [], False, ruler.small * LEADING, (0.0, 1.4 * ruler.small)  # half of the last number
    places = _fraction(np.array([place for place, _ in ticks]), ends, panel.x_log) * width
    room = float(np.diff(places).min()) - ruler.pad if len(ticks) > 1 else width
    lying = [folded(text, max(room / ruler.small, 1.0)) for _, text in ticks]
    widest = max(em(word) for _, text in ticks for word in text.split(" "))
    if widest * ruler.small <= room and not any(line.endswith("…") for lines in lying for line in lines):
        halves = np.array([max(map(em, lines), default=0.0) * ruler.small / 2 for lines in lying])
        beyond = (float((halves - places).max()), float((halves + places).max() - width))
        texts = [(place, "\n".join(lines)) for (place, _), lines in zip(ticks, lying, strict=True)]
        return texts, False, max(map(len, lying)) * ruler.small * LEADING, beyond
    most = 0.75 * ruler.names / ruler.small
    kept = [(ticks[i][0], _shortened(ticks[i][1], most)) for i in _apart(places, ruler.small * 1.15)]
    return kept, True, max(em(text) for _, text in kept) * ruler.small, (0.0, 0.0)


def _y_words(panel: Panel, ends: tuple[float, float], height: float, ruler: Ruler) -> tuple[list[Tick], float]:
    """Ticks, and how wide their text is."""
    ticks = _within(panel.y_ticks, ends)
    if not ticks:
        return [], _numbers(ends, panel.y_log) * ruler.small
    places = _fraction(np.array([place for place, _ in ticks]), ends, panel.y_log) * height
    lines = [folded(text, ruler.names / ruler.small, 2) for _, text in ticks]
    least = ruler.small * 1.1 * max(map(len, lines))
    kept = [(ticks[i][0], "\n".join(lines[i])) for i in _apart(places, least)]
    return kept, max(em(line) for each in lines for line in each or [""]) * ruler.small


def _within(ticks: Sequence[Tick], ends: tuple[float, float]) -> list[Tick]:
    low, high = min(ends), max(ends)
    return sorted((place, text) for place, text in ticks if low <= place <= high)


def _apart(places: Float[np.ndarray, " n"], least: float) -> list[int]:
    """Which of the sorted places to keep so that neighbours are ``least`` apart."""
    kept = [0]
    for index in range(1, len(places)):
        if places[index] - places[kept[-1]] >= least * (1 - 1e-9):
            kept.append(index)
    return kept


def _numbers(ends: tuple[float, float], log: bool) -> float:
    """About how wide the numbers at an axis are, in em."""
    if log:
        return 2.8
    step = 10 ** np.floor(np.log10((max(ends) - min(ends)) / 3 or 1.0))
    decimals = int(clamp(-np.log10(step), 0, 6))
    return clamp(max(em(f"{end:.{decimals}f}".replace("-", "−")) for end in ends), 1.3, 4.2)


def _fraction(values: Float[np.ndarray, " n"], ends: tuple[float, float], log: bool) -> Float[np.ndarray, " n"]:
    """Where values are between the ends of an axis: 0 … 1."""
    numbers, (low, high) = np.asarray(values, dtype=float), ends
    if log:
        numbers, low, high = np.log10(np.where(numbers > 0, numbers, np.nan)), np.log10(low), np.log10(high)
    return (numbers - low) / ((high - low) or 1.0)


# -- labels beside points ------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""
Option = tuple[tuple[float, float], str, Box, float]
"""Offset from the point, alignment, box, and how far that is from where the label should be."""
MANY = 1000
"""Points of a series that labels no longer make way for."""


def beside(frame: Frame, ruler: Ruler) -> list[Beside]:
    """The labels of named points: each beside its point, or as near above or below as the others leave room."""
    points = _named(frame)
    half = ruler.pad * 0.7
    taken: list[Box] = [(x - half, y - half, x + half, y + half) for *_, (x, y) in points]
    marks, found = _marks(frame, ruler), []
    for series, index, second, at in points:
        text = _label(frame.panel, series, index, frame.width, ruler)
        size = (em(text) * ruler.small, ruler.small * 1.15)
        options = list(_options(frame, series, index, at, size, ruler.pad))
        offset, align, box, _ = min(options, key=lambda option: _cost(option, np.array(taken), marks, frame))
        taken.append(box)
        moved = abs(offset[1]) > size[1] * 0.7 and align != "center"
        found.append(Beside(float(series.x[index]), float(series.y[index]), text, second, offset, align, moved))
    return found


def _marks(frame: Frame, ruler: Ruler) -> Float[np.ndarray, "m 5"]:
    """Boxes around points, and bars, that labels had better not cover, with how much each weighs."""
    panel, half, found = frame.panel, ruler.pad * 0.4, [np.empty((0, 5))]
    for series in panel.everything:
        there, second = series.there, series in panel.second
        if series.look in ("line", "points", "arrows") and len(series.x) <= MANY:
            at = frame.at(series.x[there], series.y[there], second)
            found.append(np.column_stack([at - half, at + half, np.full(len(at), 3.0)]))
        elif series.look == "bars" and len(series.x) <= MANY:
            (low, high), end = panel.sides(series), series.x if panel.horizontal else series.y
            corners = [(low, series.foot), (high, end)]
            ends = [frame.at(*(pair[::-1] if panel.horizontal else pair), second)[there] for pair in corners]
            found.append(np.column_stack([np.minimum(*ends), np.maximum(*ends), np.full(int(there.sum()), 0.6)]))
    return np.nan_to_num(np.concatenate(found))


def _named(frame: Frame) -> list[tuple[Series, int, bool, tuple[float, float]]]:
    """Series, index, whether on the second axis, and place of each named point that can be seen."""
    found = []
    panel, size = frame.panel, (frame.width, frame.height)
    for second, group in ((False, panel.series), (True, panel.second)):
        for series in (series for series in group if series.named):
            places = frame.at(series.x, series.y, second)
            for index in series.named:
                x, y = (float(value) for value in places[index])
                if series.there[index] and 0 <= x <= size[0] and 0 <= y <= size[1]:
                    found.append((series, index, second, (x, y)))
    return found


def _options(
    frame: Frame, series: Series, index: int, at: tuple[float, float], size: tuple[float, float], pad: float
) -> Iterator[Option]:
    """Offset, alignment and box of each place that a label may take, the best first."""
    (x, y), (width, height) = at, size
    lying, back = frame.panel.horizontal, False
    if series.look == "bars":
        back = bool((series.x if lying else series.y)[index] < series.foot[index])
    if series.look == "bars" and not lying:
        sign = -1 if back != frame.panel.flipped else 1
        for step in range(6):
            up = sign * (0.8 * pad + height / 2 + step * height / 2)
            bottom, top = y + up - height / 2, y + up + height / 2
            yield (0.0, up), "center", (x - width / 2, bottom, x + width / 2, top), step * height / 2
    for step in range(24):
        up = (step + 1) // 2 * (height / 2) * (1 if step % 2 else -1)
        bottom, top = y + up - height / 2, y + up + height / 2
        sides: list[Option] = [
            ((pad, up), "left", (x + pad, bottom, x + pad + width, top), abs(up)),
            ((-pad, up), "right", (x - pad - width, bottom, x - pad, top), abs(up)),
        ]
        yield from (reversed(sides) if back else sides)


def _cost(option: Option, taken: Float[np.ndarray, "k 4"], marks: Float[np.ndarray, "m 5"], frame: Frame) -> float:
    """How much of a label is outside the panel or taken, and a little for what it covers and how far it went."""
    _, _, box, far = option
    height = box[3] - box[1]
    whole = (box[2] - box[0]) * height or 1.0
    outside = whole - _overlaps(box, np.array([[0.0, 0.0, frame.width, frame.height]])).sum()
    covered = _overlaps(box, taken).sum() + 0.3 * (_overlaps(box, marks[:, :4]) * marks[:, 4]).sum()
    # Equal but for rounding is equal, so that both renderers choose alike.
    return round(float((4 * outside + covered) / whole + 0.02 * far / height), 6)


def _overlaps(box: Box, others: Float[np.ndarray, "k 4"]) -> Float[np.ndarray, " k"]:
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    areas: np.ndarray = np.clip(width, 0, None) * np.clip(height, 0, None)
    return areas
