"""How far activations move, as figures: by head, layer, place and kind of token, on planes; beside a random edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from jola_interp.analysis.grids import GridMap, Sheet, reach
from jola_interp.analysis.shifts import (
    CLASSES,
    KINDS,
    LAYER_MEASURES,
    MEASURES,
    NOTIONS,
    Notion,
    Plane,
    Shifts,
    source_of,
)
from jola_interp.analysis.summary import percent
from jola_interp.analysis.tables import load_table
from jola_interp.plots import style
from jola_interp.plots.chart import Chart, Panel, Rule, Series
from jola_interp.plots.charts import draw
from jola_interp.plots.maps import sheet
from jola_interp.plots.style import Renderer, require

if TYPE_CHECKING:
    from jola_interp.runs import Run

TABLE = "shifts"
"""The name under which a Run keeps the table."""
Shown = Literal["norm", "cosine", "residual"]
UNITS: dict[str, str] = {"norm": "‖Δz‖ / ‖z‖", "cosine": "1 − cos(z, z′)", "residual": "‖Δz W_O‖ / ‖stream‖"}
TITLES = {"first": "first tokens", "prompt": "prompt", "answer": "answer"}
DECADES = 3
"""Logarithmic colours reach so far below the largest value."""
GROUPS = 4
"""Layers are drawn in so many groups of neighbours at most."""
OFFSET = "offset g_a·a"
ACROSS = 3
"""Planes in a row."""
WIDE = 10.0
"""An axis is logarithmic where the largest value is so many times the smallest."""
COLOURS = {"local": style.BLUE, "total": style.VERMILION}
SIZES = {style.GREY: 11.0, style.INK: 7.0}
"""Of points: the random edit is a ring around the trained one where they agree."""
RANDOM = "random directions"
MEANINGS = {
    "local": "Local: Δz = edit(z) − z on the z of one edited pass.",
    "total": "Total: Δz = z′ of the edited pass − z of the base model; closed heads move too.",
}
CAVEATS = {
    "norm": "The ratio is large where the edit is large, or where ‖z‖ is small: hovering tells ‖Δz‖ and ‖z‖.",
    "cosine": "0: the direction is kept, 1: a right angle. A head that is only made longer keeps its direction.",
    "residual": "Single heads of a layer may cancel each other; layer_shifts shows what they write together.",
}


def shift_maps(
    run_or_table: Run | Shifts,
    which: Notion = "local",
    of: Shown = "norm",
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """How far each head moves: a map per class of tokens, first tokens apart, above the same for random directions.

    Layer 0 is at the bottom; white lines part heads that share key and value. All maps have one scale.

    Args:
        run_or_table: a Run that holds the table, or the table.
        which: ``local`` what the edit does to the z that it meets · ``total`` edited run against base run.
        of: ``norm`` ‖Δz‖/‖z‖ · ``cosine`` 1 − cos(z, z'), 0 for a direction kept · ``residual``
            ‖Δz W_O‖/‖stream‖.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown ``which``, ``of`` or renderer, or a Run in which this was not measured
            (NotMeasuredError).
    """
    require(renderer, width)
    _require_notion(which)
    if of not in get_args(Shown):
        raise ValueError(f"of must be one of {', '.join(get_args(Shown))}; got {of!r}")
    return sheet(maps_sheet(_table(run_or_table), which, of), renderer, width)


def shift_positions(
    run_or_table: Run | Shifts, which: Notion = "total", renderer: Renderer = "plotly", width: float | None = None
) -> Any:
    """‖Δz‖/‖z‖ by place in the row, and by place from the answer's start, for groups of layers.

    Args:
        run_or_table: a Run that holds the table, or the table.
        which: ``local`` or ``total``; see :func:`shift_maps`.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown ``which`` or renderer, or a Run in which this was not measured (NotMeasuredError).
    """
    require(renderer, width)
    _require_notion(which)
    return draw(positions_chart(_table(run_or_table), which), renderer, width)


def shift_kinds(run_or_table: Run | Shifts, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """‖Δz‖/‖z‖ by kind of token (word start, digit, punctuation, …), local beside total, for groups of layers.

    Args:
        run_or_table: a Run that holds the table, or the table.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown renderer, or a Run in which this was not measured (NotMeasuredError).
    """
    require(renderer, width)
    return draw(kinds_chart(_table(run_or_table)), renderer, width)


def layer_shifts(run_or_table: Run | Shifts, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """What the heads of each layer write together, over the stream: its norm, and its cosine with the stream.

    Args:
        run_or_table: a Run that holds the table, or the table.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown renderer, or a Run in which this was not measured (NotMeasuredError).
    """
    require(renderer, width)
    return draw(layers_chart(_table(run_or_table)), renderer, width)


def shift_pca(run_or_table: Run | Shifts, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Tokens of a few heads on the plane of their base activations, an arrow each from z to z', and the offset.

    The plane is that of the base model alone. How much of the offset, and of the shifts, lies in it at all stands above
    each panel.

    Args:
        run_or_table: a Run that holds the table, or the table.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown renderer, or a Run in which this was not measured (NotMeasuredError).
    """
    require(renderer, width)
    return draw(planes_chart(_table(run_or_table)), renderer, width)


# -- maps --------------------------------------------------------------------------------------------------------------


def maps_sheet(table: Shifts, which: Notion, of: Shown) -> Sheet:
    """The sheet of :func:`shift_maps`."""
    values = {random: _shown(table, which, of, random) for random in (False, True)}
    low, high = reach("magnitude", *values.values(), log=True)
    ends = max(low, high / 10**DECADES), high
    rows = tuple(
        tuple(
            GridMap(
                values=values[random][place],
                title=f"{TITLES[group]}, {RANDOM if random else 'the edit'}",
                labels=table.labels,
                mask=_mask(table, which),
                range=ends,
                kind="magnitude",
                hover=_hover(table, which, of, place, random),
                group=table.group,
                unit=UNITS[of],
                log=True,
            )
            for place, group in enumerate(CLASSES)
        )
        for random in (False, True)
    )
    notes = [
        MEANINGS[which],
        table.random_words(),
        *_beyond(table, which, of),
        CAVEATS[of],
        *_colour_notes(table, which, values[False], ends),
    ]
    return Sheet(
        rows=rows,
        title=f"{table.title}: {which} shifts",
        notes=(*notes, table.tokens_words(), *table.caveats()),
        headings=tuple(TITLES[group] for group in CLASSES),
        names=("edit", "random"),
    )


def _shown(table: Shifts, which: Notion, of: Shown, random: bool) -> Float[np.ndarray, "class layer head"]:
    """What the maps colour; of a cosine its distance from 1, since most are near it."""
    return _where(table, which, _distance(of, table.of(which, of, random=random)))


def _distance(of: Shown, values: np.ndarray) -> np.ndarray:
    """1 − cos where it is of a cosine."""
    return (1 - values).clip(min=0) if of == "cosine" else values


def _beyond(table: Shifts, which: Notion, of: Shown) -> list[str]:
    """How many heads differ from every random edit, and how many would by chance."""
    draws = len(table.drawn("mean", which))
    outside, heads = table.beyond(which, of)
    if draws < 2 or not heads:
        return []
    chance = 2 * heads / (draws + 1)
    return [f"Heads outside the range of the random draws: {outside} of {heads}; {chance:.0f} would be by chance."]


def _mask(table: Shifts, which: Notion) -> np.ndarray:
    """Only editable heads move locally; in total all may."""
    return table.mask if which == "local" else np.ones_like(table.mask)


def _where(table: Shifts, which: Notion, values: Float[np.ndarray, "class layer head"]) -> np.ndarray:
    return np.where(_mask(table, which), values, np.nan)


def _hover(table: Shifts, which: Notion, of: Shown, place: int, random: bool) -> dict[str, np.ndarray]:
    columns = {"sd": table.of(which, of, random=random, sd=True)}
    columns |= {"‖Δz‖": table.of(which, "delta", random=random), "‖z‖": table.of(which, "size", random=random)}
    if random and table.draws:
        drawn = _distance(of, table.drawn("mean", which)[:, MEASURES.index(of)])
        columns |= {"least draw": drawn.min(0), "largest draw": drawn.max(0)}
    return {name: _where(table, which, values)[place] for name, values in columns.items()}


def _colour_notes(
    table: Shifts, which: Notion, values: Float[np.ndarray, "class layer head"], ends: tuple[float, float]
) -> list[str]:
    still = int((values[1:] == 0).all(0).sum())
    below = bool(((values > 0) & (values < ends[0] * (1 - 1e-9))).any())
    notes = ["Colours are logarithmic" + (f", and end at {ends[0]:.2g}." if below else ".")]
    if which == "local":
        notes.append("Random offsets are as long as the edit's by construction; what may differ is where they point.")
    if still:
        notes.append(f"Heads that do not move at all: {still} of {_mask(table, which).sum()}.")
    return notes


# -- by place and kind of token ----------------------------------------------------------------------------------------


def positions_chart(table: Shifts, which: Notion) -> Chart:
    """The chart of :func:`shift_positions`."""
    whole, around = ({name: one[source] for name, source in _sources(which)} for one in (table.position, table.answer))
    bands = [_ends(table.drawn(name, which)) for name in ("position", "answer")]
    lines = [line for one in (whole, around) for values in one.values() for line in _lines_of(values)]
    log, ends = _shared([*lines, *bands[0], *bands[1]])
    axes: dict[str, Any] = {"y_log": log, "y_range": ends}
    start = table.answer_bins.index("0") - 0.5
    label = f"{which} {UNITS['norm']}, heads side by side"
    by_place = Panel(
        tuple(_by_bin(whole, bands[0], table.position_bins, apart=True)), "by place in the row",
        "token (0 is the first)", label,
        x_range=(-0.5, len(table.position_bins) - 0.5), x_ticks=_ticks(table.position_bins), rules=(Rule("x", 0.5),),
        **axes,
    )  # fmt: skip
    by_answer = Panel(
        tuple(_by_bin(around, bands[1], table.answer_bins, apart=False)), "by place from the answer's start",
        "token (0 is the answer's first)", label, x_range=(-0.5, len(table.answer_bins) - 0.5),
        x_ticks=_ticks(table.answer_bins), rules=(Rule("x", start),), **axes,
    )  # fmt: skip
    notes = (
        MEANINGS[which],
        "A mean over tokens and layers; the heads of a layer are one vector.",
        "First tokens stand apart at 0 on the left and are left out on the right; dotted: where the answer begins.",
        table.random_words(),
        table.tokens_words(),
        *table.caveats(),
    )
    return Chart(((by_place, by_answer),), f"{table.title}: shifts by place", notes)


def kinds_chart(table: Shifts) -> Chart:
    """The chart of :func:`shift_kinds`."""
    found = [place for place in range(len(KINDS)) if table.kind_tokens[place]]
    ticks = tuple((float(i), f"{KINDS[place]} · {table.kind_tokens[place]:,}") for i, place in enumerate(found))
    places = np.arange(len(found), dtype=float)
    names = tuple(KINDS[place] for place in found)
    panels = []
    for which in NOTIONS:
        values = {name: table.kind[source][found] for name, source in _sources(which)}
        band = _ends(table.drawn("kind", which)[:, found])
        log, ends = _shared([*_lines_of(values["edit"]), *_lines_of(values["random"]), *band])
        lines = [*_groups(values["edit"]), _all_layers(values["random"], random=True), _all_layers(values["edit"])]
        series = tuple(
            Series(
                mean,
                places,
                name,
                "points",
                colour,
                labels=names,
                size=SIZES.get(colour),
                low=band[0] if colour == style.GREY else None,
                high=band[1] if colour == style.GREY else None,
            )
            for name, mean, colour in lines
        )
        panels.append(
            Panel(
                series,
                which,
                UNITS["norm"],
                x_range=ends,
                y_range=(-0.6, len(found) - 0.4),
                x_log=log,
                y_ticks=ticks,
                rules=(Rule("y", 0.5),),
                flipped=True,
                horizontal=True,
            )  # fmt: skip
        )
    notes = (
        *MEANINGS.values(),
        "A mean over tokens and layers, the heads of a layer one vector; behind each kind, how many tokens. "
        "First tokens are apart, above the dotted line, whatever their text.",
        table.random_words(),
        *table.caveats(),
    )
    return Chart((tuple(panels),), f"{table.title}: shifts by kind of token", notes, height=0.8)


def _sources(which: Notion) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("edit", source_of(which)), ("random", source_of(which, random=True))


def _groups(values: Float[np.ndarray, "bin layer"]) -> Iterator[tuple[str, np.ndarray, str]]:
    """Name, mean by bin, and colour of each group of neighbouring layers."""
    layers = values.shape[1]
    for place, group in enumerate(np.array_split(np.arange(layers), min(GROUPS, layers))):
        name = f"layer {group[0]}" if len(group) == 1 else f"layers {group[0]}–{group[-1]}"
        yield name, _mean(values[:, group]), style.LINES[place]


def _all_layers(values: Float[np.ndarray, "bin layer"], random: bool = False) -> tuple[str, np.ndarray, str]:
    return ("all layers, " + RANDOM, _mean(values), style.GREY) if random else ("all layers", _mean(values), style.INK)


def _lines_of(values: Float[np.ndarray, "bin layer"]) -> list[np.ndarray]:
    return [mean for _, mean, _ in _groups(values)] + [_mean(values)]


def _mean(values: Float[np.ndarray, "bin layer"]) -> Float[np.ndarray, " bin"]:
    """Over layers; NaN where none has a value."""
    known = np.isfinite(values)
    sums = np.where(known, values, 0).sum(1)
    return np.asarray(np.where(known.any(1), sums / np.maximum(known.sum(1), 1), np.nan))


def _ends(draws: Float[np.ndarray, "draw bin layer"]) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest mean over layers that a draw has, by bin."""
    means = np.stack([_mean(one) for one in draws])
    return means.min(0), means.max(0)


def _by_bin(
    values: dict[str, Float[np.ndarray, "bin layer"]], band: tuple[np.ndarray, np.ndarray], bins: Sequence[str],
    apart: bool,
) -> Iterator[Series]:  # fmt: skip
    """A line per group of layers and two of all, the random one on its band; with ``apart`` the first bin is a point of
    its own."""
    places = np.arange(len(bins), dtype=float)
    inner = slice(1, None) if apart else slice(None)
    low, high = (end[inner] for end in band)
    if (high > low).any():
        yield Series(
            places[inner], (low + high) / 2, f"{RANDOM}: range", "band", style.GREY, low=low, high=high, legend=False
        )
    lines = [*_groups(values["edit"]), _all_layers(values["edit"]), _all_layers(values["random"], random=True)]
    for name, mean, colour in lines:
        random = colour == style.GREY
        looks: dict[str, Any] = {"colour": colour, "dash": "dash" if random else "solid"}
        looks["size"] = 2.5 if colour == style.INK else 1.5
        yield Series(places[inner], mean[inner], name, "line", labels=tuple(bins[inner]), **looks)
        if apart:
            ends: dict[str, Any] = {"low": band[0][:1], "high": band[1][:1]} if random else {}
            yield Series(places[:1], mean[:1], name, "points", colour, labels=tuple(bins[:1]), legend=False, **ends)


def _shared(lines: Sequence[np.ndarray]) -> tuple[bool, tuple[float, float]]:
    """Whether an axis for all of these is logarithmic, and its ends."""
    values = np.concatenate([np.empty(0), *lines])
    values = values[np.isfinite(values)]
    if not len(values) or not values.max() > 0:
        return False, (0.0, 1.0)
    if values.min() > 0 and values.max() > WIDE * values.min():
        return True, (float(values.min()) / 1.25, float(values.max()) * 1.25)
    return False, (0.0, 1.05 * float(values.max()))


def _ticks(bins: Sequence[str]) -> tuple[tuple[float, str], ...]:
    return tuple((float(place), name) for place, name in enumerate(bins))


# -- by layer ----------------------------------------------------------------------------------------------------------


def layers_chart(table: Shifts) -> Chart:
    """The chart of :func:`layer_shifts`."""
    order = (*CLASSES[1:], CLASSES[0])
    sizes = {
        name: [mean for *_, mean in _of_layers(table, "residual", name)]
        + [end for which in NOTIONS for end in _layer_ends(table, which, "residual", name)]
        for name in order
    }
    ends = _shared([line for name in CLASSES[1:] for line in sizes[name]]), _shared(sizes[CLASSES[0]])
    above = tuple(
        _layer_panel(table, "residual", name, "‖Σ Δz W_O‖ / ‖stream‖", ends[name == CLASSES[0]]) for name in order
    )
    below = tuple(_layer_panel(table, "cosine", name, "cos(Σ Δz W_O, stream)", (False, (-1.0, 1.0))) for name in order)
    notes = (
        "Σ Δz W_O: what all heads of a layer write because they moved; the stream: what enters the block in the base "
        "model.",
        *MEANINGS.values(),
        f"{table.random_words()} First tokens have a scale of their own.",
        "Below: whether it adds to the stream (above 0) or takes from it; directions at random have a cosine near 0.",
        table.tokens_words(),
        *table.caveats(),
    )
    return Chart((above, below), f"{table.title}: what layers write", notes, height=0.7)


def _layer_panel(
    table: Shifts,
    measure: Literal["residual", "cosine"],
    group: str,
    label: str,
    scale: tuple[bool, tuple[float, float]],
) -> Panel:
    layers = np.arange(table.mask.shape[0], dtype=float)
    labels = tuple(f"L{layer:.0f}" for layer in layers)
    bands = [
        Series(
            layers, (low + high) / 2, f"{which}, {RANDOM}: range", "band", COLOURS[which], low=low, high=high,
            legend=False,
        )
        for which in NOTIONS
        for low, high in [_layer_ends(table, which, measure, group)]
        if (high > low).any()
    ]  # fmt: skip
    series = tuple(
        Series(
            layers,
            mean,
            f"{which}, {RANDOM}" if random else which,
            colour=COLOURS[which],
            labels=labels,
            dash="dash" if random else "solid",
            opacity=0.7 if random else 1.0,
        )
        for which, random, mean in _of_layers(table, measure, group)
    )
    title = TITLES[group] if measure == "residual" else ""
    rules = (Rule("y", 0.0, "solid"),) if measure == "cosine" else ()
    across = (-0.5, len(layers) - 0.5)
    return Panel(
        (*bands, *series), title, "layer", label, x_range=across, y_range=scale[1], y_log=scale[0], rules=rules
    )


def _layer_ends(
    table: Shifts, which: Notion, measure: Literal["residual", "cosine"], group: str
) -> tuple[Float[np.ndarray, " layer"], Float[np.ndarray, " layer"]]:
    """The least and the largest that a random draw has."""
    draws = table.drawn("layer_mean", which)[:, LAYER_MEASURES.index(measure), CLASSES.index(group)]
    return draws.min(0), draws.max(0)


def _of_layers(
    table: Shifts, measure: Literal["residual", "cosine"], group: str
) -> Iterator[tuple[Notion, bool, Float[np.ndarray, " layer"]]]:
    """Notion, whether of the random edit, and the means; the random ones last, dashed on what they may cover."""
    for random in (False, True):
        for which in NOTIONS:
            yield which, random, table.of_layer(which, measure, random=random)[CLASSES.index(group)]


# -- planes ------------------------------------------------------------------------------------------------------------


def planes_chart(table: Shifts) -> Chart:
    """The chart of :func:`shift_pca`."""
    planes = table.planes
    panels = [_plane_panel(plane) for plane in planes] or [Panel((), "no head is edited")]
    rows = tuple(tuple(panels[i : i + ACROSS]) for i in range(0, len(panels), ACROSS))
    notes = [
        "Arrows: from z of the base model to z′ of the edited pass (a total shift), a token each; first tokens are "
        "left out. PC1, PC2: of the base model's z alone; 0 is their mean.",
        "Thick: the offset g_a·a, drawn so many times its length as stands above the panel.",
    ]
    if planes:
        by = (
            f"the largest {table.planes_by}"
            if table.planes_by
            else "the largest ‖Δz W_O‖, which is not relative to ‖z‖"
        )
        notes.append(f"Heads: those with {by}.")
        notes.append(
            "Shares in the plane, of the offset and of all drawn shifts, are of squared norms; a direction at random "
            f"has {percent(planes[0].chance)} (2/d_head). What is not in the plane is not in the picture."
        )
        notes.append(f"n = {len(planes[0].base):,} tokens, evenly drawn.")
    return Chart(rows, f"{table.title}: shifts on planes", (*notes, *table.caveats()), height=1.0)


def _plane_panel(plane: Plane) -> Panel:
    series = [
        Series(
            plane.edited[chosen, 0],
            plane.edited[chosen, 1],
            name,
            "arrows",
            colour,
            x_from=plane.base[chosen, 0],
            y_from=plane.base[chosen, 1],
            size=1.0,
            opacity=0.6,
        )
        for name, colour, chosen in (("prompt", style.SKY, ~plane.answer), ("answer", style.ORANGE, plane.answer))
        if chosen.any()
    ]
    factor, words = _magnified(plane), []
    if np.isfinite(plane.offset_share):
        ends, foot = factor * plane.offset[:, None], np.zeros(1)
        series.append(Series(ends[0], ends[1], OFFSET, "arrows", style.INK, x_from=foot, y_from=foot, size=4.0))
        words.append(f"offset{f' (drawn × {factor:g})' if factor > 1 else ''} {_share(plane.offset_share)}")
    if np.isfinite(plane.moved_share):
        words.append(f"shifts {_share(plane.moved_share)}")
    title = f"{plane.label}, in the plane: {', '.join(words)}" if words else plane.label
    first, second = (f"PC{i + 1} ({_share(value)} of the variance)" for i, value in enumerate(plane.explained))
    return Panel(tuple(series), title, first, second, square=True)


def _magnified(plane: Plane) -> float:
    """1, 2, 5, 10, …: what the offset is drawn times, to reach about half as far as the points."""
    length = float(np.linalg.norm(plane.offset))
    reached = float(np.abs(np.concatenate([plane.base, plane.edited])).max(initial=0.0))
    if not length > 0 or not np.isfinite(reached):
        return 1.0
    steps = [digit * 10.0**power for power in range(9) for digit in (1, 2, 5)]
    return next((step for step in steps if step * length >= 0.4 * reached), 1.0)


def _share(value: float) -> str:
    """Such as "12 %", on one line."""
    return percent(float(value)).replace(" ", "\u00a0") if np.isfinite(value) else "–"


# -- arguments ---------------------------------------------------------------------------------------------------------


def _table(run_or_table: Run | Shifts) -> Shifts:
    return run_or_table if isinstance(run_or_table, Shifts) else load_table(run_or_table, TABLE, Shifts)


def _require_notion(which: str) -> None:
    if which not in NOTIONS:
        raise ValueError(f"which must be one of {', '.join(NOTIONS)}; got {which!r}")
