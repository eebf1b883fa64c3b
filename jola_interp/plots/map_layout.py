"""What both renderers of maps agree on: which colour bars, legend entries, axes and margins a sheet needs."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

import numpy as np

from jola_interp.analysis import GridMap, Sheet
from jola_interp.analysis.grids import Ticks
from jola_interp.analysis.shared_heads import CATEGORIES
from jola_interp.plots import style
from jola_interp.selection import STATUSES

SCALES: dict[str, str | tuple[str, ...]] = {
    **style.SCALES,
    # Blue to orange, as dark at one end as at the other; white is the true zero.
    "signed": ("#0D5299", "#6AAAD4", "#FFFFFF", "#EB9B4C", "#8C4600"),
}
SIDES = (style.STATUSES[0], style.SKY, style.PURPLE, "#4A4A4A")
"""Colours of codes that have none of their own …"""
PALETTES: dict[tuple[str, ...], tuple[str, ...]] = {
    STATUSES: style.STATUSES,
    CATEGORIES: (style.STATUSES[0], "#BDD3E6", style.SKY, style.BLUE, style.ORANGE),
}
"""… which these words have."""
BLANK = (style.NO_UNIT, "#F0F0F0")
"""What shows where there is no value, on screen and on paper …"""
BLANK_BESIDE_WHITE = ("rgba(128,128,128,0.45)", "#C6C6C6")
"""… and on sheets where white is the colour of a zero."""
LONGEST = 28
"""Characters of a tick's text; longer ones are cut."""
Key = tuple[str, str, tuple[float, float], bool]


@dataclass(frozen=True)
class Bar:
    """A colour bar, and which panels it is for.

    Attributes:
        panel: the first of them; all have its scale.
        text: what stands beside the bar.
        rows, columns: the first and the last where one of them is.
    """

    panel: GridMap
    text: str
    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True)
class Entry:
    """A line of the legend; ``colours`` (screen, paper) are None for the stroke of hatched cells."""

    name: str
    count: str = ""
    colours: tuple[str, str] | None = None


def key_of(panel: GridMap) -> Key | None:
    """What panels that share a colour bar have in common; None without one."""
    return None if panel.kind == "status" else (panel.kind, panel.unit, panel.limits, panel.log)


def bars_of(sheet: Sheet) -> dict[Key, Bar]:
    """The colour bars that a sheet needs, in the order in which its panels come."""
    places: dict[Key, list[tuple[int, int]]] = {}
    for row, panels in enumerate(sheet.rows):
        for column, panel in enumerate(panels):
            if (key := key_of(panel)) is not None:
                places.setdefault(key, []).append((row, column))
    found = {}
    for key, at in places.items():
        texts = {sheet.rows[row][column].measure for row, column in at}
        rows, columns = zip(*at, strict=True)
        first = sheet.rows[at[0][0]][at[0][1]]
        # Panels of several titles and no unit: no one of the titles may stand for all.
        text = texts.pop() if len(texts) == 1 else "value"
        found[key] = Bar(first, text, (min(rows), max(rows)), (min(columns), max(columns)))
    return found


def legend_of(sheet: Sheet) -> list[Entry]:
    """What codes mean, with their counts in each of the panels; what blank cells are; the hatching."""
    found: list[Entry] = []
    coded = [panel for panel in sheet.panels if panel.kind == "status"]
    for words in dict.fromkeys(panel.words for panel in coded):
        like = [panel for panel in coded if panel.words == words]
        colours = list(zip(codes_of(sheet, words, screen=True), codes_of(sheet, words), strict=True))
        for code in sorted({code for panel in like for code in panel.categories}):
            count = " / ".join(str(int((panel.values == code).sum())) for panel in like)
            found.append(Entry(words[code], count, colours[code]))
    found += [Entry(name, "", blank_of(sheet)) for name in _absent(sheet)]
    hatches = [panel.hatch or style.HATCHED for panel in sheet.panels if len(panel.hatched[0])]
    return found + [Entry(name) for name in dict.fromkeys(hatches)]


def codes_of(sheet: Sheet, words: tuple[str, ...], screen: bool = False) -> tuple[str, ...]:
    """The colours of a status map's codes."""
    known = PALETTES.get(words, SIDES)
    # The translucent grey of the screen is meant for a light ground.
    return (style.NONE if screen and blank_of(sheet) == BLANK else known[0], *known[1:])


def dark(panel: GridMap) -> np.ndarray:
    """[layer, unit] True where a cell's colour is nearer to black than to white."""
    if panel.kind == "status":
        return np.asarray(panel.values > 0)
    values, (low, high) = panel.values, panel.limits
    if panel.log:
        values, low, high = np.log10(np.where(panel.blank, np.nan, values)), math.log10(low), math.log10(high)
    share = (values - low) / (high - low)
    return np.asarray(np.abs(share - 0.5) > 0.3 if panel.kind == "signed" else share < 0.5)


def blank_of(sheet: Sheet) -> tuple[str, str]:
    """Colour of what is blank, on screen and on paper: dark enough not to be taken for a zero."""
    white = any(panel.kind == "signed" and panel.blank.any() for panel in sheet.panels)
    return BLANK_BESIDE_WHITE if white else BLANK


def own_y(sheet: Sheet, row: int, column: int) -> bool:
    """Whether a panel shows its vertical ticks: it is the first of its row, or has others than its neighbour."""
    panels = sheet.rows[row]
    return column == 0 or _vertical(panels[column]) != _vertical(panels[column - 1])


def own_x(sheet: Sheet, row: int, column: int) -> bool:
    """Whether a panel shows its horizontal ticks: it is in the last row, or has others than the one below."""
    last = row == len(sheet.rows) - 1
    return last or _horizontal(sheet.rows[row][column]) != _horizontal(sheet.rows[row + 1][column])


def label_of(sheet: Sheet, row: int, column: int) -> str:
    """What stands beside a panel's vertical axis."""
    if not own_y(sheet, row, column):
        return ""
    return sheet.label_at(row) if column == 0 else sheet.rows[row][column].y_label


def y_range(panel: GridMap) -> tuple[float, float]:
    """The vertical axis from its lower end to its upper."""
    ends = (-0.5, panel.shape[0] - 0.5)
    return ends[::-1] if panel.flipped else ends


def has_margin(sheet: Sheet, panel: GridMap) -> bool:
    """Whether bars stand beside a map: of one unit a layer they would be the map once more."""
    return sheet.margin and panel.shape[1] > 1


def has_margins(sheet: Sheet, column: int | None = None) -> bool:
    """Whether a column, or any, has bars beside its maps."""
    rows = [row if column is None else row[column : column + 1] for row in sheet.rows]
    return any(has_margin(sheet, panel) for row in rows for panel in row)


def margin_series(sheet: Sheet, panel: GridMap) -> list[tuple[str, str, str]]:
    """Name and colour, on screen and on paper, of each row of :meth:`GridMap.margin`."""
    if panel.kind != "status":
        return [(f"mean {panel.measure}", style.GREY, style.GREY)]
    screen, paper = codes_of(sheet, panel.words, screen=True), codes_of(sheet, panel.words)
    return [(panel.words[code], screen[code], paper[code]) for code in panel.categories[1:]]


def margin_end(sheet: Sheet, panel: GridMap) -> tuple[float, float]:
    """The range of a margin: 0 to 1, or what all panels that share its scale need."""
    if panel.kind == "probability":
        return 0.0, 1.0
    like = [other for other in sheet.panels if key_of(other) == key_of(panel)]
    sums = np.concatenate([other.margin().sum(0) for other in like])
    most = float(np.nanmax(np.abs(sums))) if np.isfinite(sums).any() else 0.0
    most = most or 1.0
    return (-most, most) if panel.kind == "signed" else (0.0, most)


def short(value: float) -> str:
    """A number in few characters."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def margin_text(panel: GridMap) -> str:
    """What a margin holds."""
    return f"{panel.x_label}s" if panel.kind == "status" else "mean"


def cut(text: str) -> str:
    """A tick's text, no longer than fits."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def longest(ticks: Ticks) -> int:
    """Characters of the longest text."""
    return max((len(cut(text)) for _, text in ticks), default=0)


def thinned(ticks: Ticks, most: int) -> Ticks:
    """At most ``most`` of the ticks, evenly."""
    step = math.ceil(len(ticks) / max(most, 1)) if ticks else 1
    return tuple((place, cut(text)) for place, text in ticks[::step])


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Places on a logarithmic scale: powers of ten, with 2 and 5 between them where there would be fewer than three."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, math.ceil((last - first) / most))
    tens = [10.0**power for power in range(first, last + 1, step) if low <= 10.0**power <= high]
    if len(tens) >= 3:
        return tens
    finer = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    found = [value for value in finer if low <= value <= high]
    return found if 2 <= len(found) <= most else [low, high]


def folded(text: str, characters: float) -> list[str]:
    """Text as lines of about so many characters; one that fits stays as it is."""
    return textwrap.wrap(text, max(int(characters), 6), break_long_words=False) or [""]


def _absent(sheet: Sheet) -> list[str]:
    """What the blank cells are, each word once."""
    words: dict[str, None] = {}
    for panel in sheet.panels:
        if not panel.mask.all() and panel.absent:
            words[panel.absent] = None
    if any(panel.log and (panel.values[panel.mask] == 0).any() for panel in sheet.panels):
        words["0"] = None
    return list(words)


def _vertical(panel: GridMap) -> tuple[object, ...]:
    return panel.shape[0], panel.y_ticks, panel.y_label, panel.flipped


def _horizontal(panel: GridMap) -> tuple[object, ...]:
    return panel.shape[1], panel.x_ticks, panel.x_label
