"""What heads are worth: parts of the edit, the effect of every gate, and what ranks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jola_interp.analysis.effects import Effects, Gate
from jola_interp.analysis.faithfulness import Faithfulness, faithfulness
from jola_interp.analysis.interplay import Interplay, effect_sheet, interplay, standard_errors
from jola_interp.analysis.ranking import NAMES, RANDOM, KeepCurves, Refitted, refitted
from jola_interp.analysis.ranking import What as Kept
from jola_interp.analysis.summary import title_of
from jola_interp.analysis.tables import load_table
from jola_interp.plots import style
from jola_interp.plots.chart import Chart, Panel, Rule, Series
from jola_interp.plots.charts import draw
from jola_interp.plots.maps import sheet
from jola_interp.plots.style import Renderer, require
from jola_interp.runs import Run

if TYPE_CHECKING:
    from jola_interp.edits.base import HeadShape

ORDERS = {"p_open": style.PURPLE, "size": style.SKY, "effect": style.VERMILION}
"""Colours of orders: none of a kind of gate."""
APART = 0.09
"""Points of different orders at one size stand this far apart, in steps of the axis."""
EFFECT = "effect (nats per answer token)"


def keep_drop(run_or_table: Run | KeepCurves, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Gain over the number of heads kept, and over the number dropped, in several orders beside random ones.

    Sizes stand at even distances. Dashed: the whole edit's gain. Refits of the evidence card, where it has them, are
    level lines: of the selected heads and of random sets beside what is kept, of all other heads beside what is left.

    Args:
        run_or_table: a Run that holds the table ``keep``, or what :func:`~jola_interp.analysis.ranking.keep_curves`
            gave.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        NotMeasuredError: a Run without the table.
        ValueError: an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    table = run_or_table
    if isinstance(table, Run):  # the card may be newer than the table
        table = replace(load_table(table, "keep", KeepCurves), refits=refitted(table))
    return draw(keep_drop_chart(table), renderer, width)


def keep_drop_chart(table: KeepCurves) -> Chart:
    """The chart of :func:`keep_drop`."""
    panels = (_kept_panel(table, "keep"), _kept_panel(table, "drop"))
    spreads = [panel.spread("y") for panel in panels]
    ends = (min(low for low, _ in spreads), max(high for _, high in spreads))
    alike = tuple(replace(panel, y_range=ends) for panel in panels)
    return Chart((alike,), f"{table.title}: what parts of the edit gain", table.notes())


def effect_map(run_or_table: Run | Effects, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Effect of closing each gate alone, a layer × head map for each kind, around 0; blank where a gate does not act.

    Args:
        run_or_table: a Run that holds the table ``effects``, or any Effects.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        NotMeasuredError: a Run without the table.
        ValueError: no gate at heads, an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    shape: HeadShape | None = None
    table, title = run_or_table, "effect of each gate"
    if isinstance(table, Run):
        shape, title = table.edit.shape, f"{title_of(table)}: effect of each gate"
        table = load_table(table, "effects", Effects)
    return sheet(effect_sheet(table, shape, title), renderer, width)


def effects_against(
    run_or_table: Run | Faithfulness, top: int = 5, renderer: Renderer = "plotly", width: float | None = None
) -> Any:
    """Effect of closing each gate against P(open), size and gradient estimate, with Spearman's ρ in each panel.

    Args:
        run_or_table: a Run that holds the table ``effects``, or what
            :func:`~jola_interp.analysis.faithfulness.faithfulness` gave.
        top: how many of the gates that help most are named.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        NotMeasuredError: a Run without the table.
        ValueError: a negative ``top``, an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    _require_count(top)
    table = run_or_table
    if isinstance(table, Run):
        table = faithfulness(table, load_table(table, "effects", Effects))
    return draw(effects_against_chart(table, top), renderer, width)


def effects_against_chart(table: Faithfulness, top: int = 5) -> Chart:
    """The chart of :func:`effects_against`."""
    named = table.top(top)
    panels = tuple(_score_panel(table, name, named) for name in table.scores)
    return Chart((panels,), f"{table.title}: does it tell which gates matter?", table.notes(), height=0.95)


def alone_against_out(
    run_or_table: Run | Interplay, top: int = 6, renderer: Renderer = "plotly", width: float | None = None
) -> Any:
    """Effect of opening each gate alone against that of closing it alone.

    Above the diagonal others stand in for a gate, below it a gate needs others.

    Args:
        run_or_table: a Run that holds the tables ``effects`` and ``alone``, or what
            :func:`~jola_interp.analysis.interplay.interplay` gave.
        top: how many gates are named.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        NotMeasuredError: a Run without one of the tables.
        ValueError: tables that do not fit each other, a negative ``top``, an unknown renderer, or a width that does
            not go with it.
    """
    require(renderer, width)
    _require_count(top)
    table = run_or_table
    if isinstance(table, Run):
        effects, alone = (load_table(table, name, Effects) for name in ("effects", "alone"))
        both = min(len(effects.nll), len(alone.nll))  # each read the first rows of the test split
        table = interplay(effects.first(both), alone.first(both), title_of(table))
    return draw(alone_against_out_chart(table, top), renderer, width)


def alone_against_out_chart(table: Interplay, top: int = 6) -> Chart:
    """The chart of :func:`alone_against_out`."""
    out, alone = table.out.mean(1), table.alone.mean(1)
    hover = {"surplus": table.surplus, "gate": _values(table.gates)}
    panel = Panel(
        _by_kind(table.gates, out, alone, standard_errors(table.alone), table.top(top), hover),
        x_label="lost when it alone is closed (nats per answer token)",
        y_label="gained when it alone is open (nats per answer token)",
        rules=(Rule("diagonal", dash="dash"), Rule("x"), Rule("y")),
    )
    notes = (
        table.sentence(),
        "Bars: 2 standard errors over rows, of the gain alone. Dashed: as much alone as left out.",
    )
    title = "gates alone and left out"
    return Chart(((panel,),), f"{table.title}: {title}" if table.title else title, notes)


# -- keep and drop -------------------------------------------------------------------------------------------------


def _kept_panel(table: KeepCurves, what: Kept) -> Panel:
    steps = np.arange(len(table.sizes), dtype=float)
    whole = float(table.gain.mean())
    series = [*_random(table, what, steps)]
    middle = (len(table.orders) - 1) / 2
    for place, name in enumerate(table.orders):
        series += _ordered(table, name, what, steps, APART * (place - middle))
    if table.refits is not None:
        series += _levels(table.refits, what, steps)
    marked = (Rule("x", float(np.interp(table.selected, table.sizes, steps))),) if table.selected else ()
    verb = "kept, all others out" if what == "keep" else "dropped, all others in"
    return Panel(
        tuple(series),
        title=f"heads {verb}",
        x_label=f"heads {verb.split(',')[0]} (of {len(table.labels)})",
        y_label="gain (nats per answer token)",
        x_range=(-0.4, float(max(len(steps) - 1, 0)) + 0.4),
        x_ticks=tuple((float(step), str(size)) for step, size in zip(steps, table.sizes, strict=True)),
        rules=(Rule("y"), Rule("y", whole, dash="dash"), *marked),
    )


def _random(table: KeepCurves, what: Kept, steps: Float[np.ndarray, " size"]) -> tuple[Series, Series]:
    found = table.curve(RANDOM, what)
    name = f"random orders ({len(table.random_keep)})"
    band = Series(
        steps, found.gain, name, "band", style.GREY, low=found.low, high=found.high, opacity=0.3, legend=False
    )
    return band, Series(steps, found.gain, name, "line", style.GREY, labels=_sizes(table))


def _ordered(
    table: KeepCurves, order: str, what: Kept, steps: Float[np.ndarray, " size"], moved: float
) -> tuple[Series, Series]:
    found = table.curve(order, what)
    name, colour = f"by {NAMES[order]}", ORDERS[order]
    line = Series(steps + moved, found.gain, name, "line", colour, legend=False)
    points = Series(
        steps + moved, found.gain, name, "points", colour, low=found.low, high=found.high, labels=_sizes(table)
    )
    return line, points


def _levels(refits: Refitted, what: Kept, steps: Float[np.ndarray, " size"]) -> list[Series]:
    """Gains of refits, from edge to edge."""
    ends = np.array([-0.4, max(len(steps) - 1, 0) + 0.4])

    def level(value: float, name: str, **look: Any) -> Series:
        return Series(ends, np.full(2, value), name, "line", style.ORANGE, **look)

    if what == "drop":
        rest = refits.complement
        return [] if rest is None else [level(rest, "refit of all other heads", dash="dot")]
    random = np.array(refits.random)
    name = f"refits of random sets ({len(random)})"
    low, high = np.full(2, random.min()), np.full(2, random.max())
    band = Series(ends, np.full(2, random.mean()), name, "band", style.ORANGE, low=low, high=high, opacity=0.2)
    return [band, level(refits.selected, f"refit of the {refits.heads} selected heads")]


def _sizes(table: KeepCurves) -> tuple[str, ...]:
    return tuple(f"{size} heads" for size in table.sizes)


# -- gates as points -----------------------------------------------------------------------------------------------


def _score_panel(table: Faithfulness, name: str, named: Sequence[int]) -> Panel:
    values = table.scores[name]
    known = values[np.isfinite(values) & (values > 0)]
    # Sizes of heads differ by orders of magnitude; ranks do not care.
    wide = name == "size" and len(known) == len(values) > 0 and known.max() > 30 * known.min()
    hover = {"gate": _values(table.gates)}
    zero = (Rule("y"), Rule("diagonal", dash="dash")) if name == "gradient" else (Rule("y"),)
    return Panel(
        _by_kind(table.gates, values, table.effect, table.se, named, hover),
        title=table.heading(name),
        x_label=table.units[name],
        y_label=EFFECT,
        x_range=(-0.03, 1.03) if name == "p_open" else None,
        x_log=wide,
        rules=zero,
    )


def _by_kind(
    gates: Sequence[Gate],
    x: Float[np.ndarray, " gate"],
    y: Float[np.ndarray, " gate"],
    se: Float[np.ndarray, " gate"],
    named: Sequence[int],
    hover: dict[str, Float[np.ndarray, " gate"]],
) -> tuple[Series, ...]:
    """Points with bars of two standard errors, a series for each kind of gate."""
    found = []
    for kind in dict.fromkeys(gate.kind for gate in gates):
        places = [i for i, gate in enumerate(gates) if gate.kind == kind]
        found.append(
            Series(
                x[places],
                y[places],
                kind,
                "points",
                style.KINDS.get(kind, style.GREEN),
                low=(y - 2 * se)[places],
                high=(y + 2 * se)[places],
                labels=tuple(gates[i].label for i in places),
                named=tuple(places.index(i) for i in named if i in places),
                hover={name: values[places] for name, values in hover.items()},
                opacity=0.8,
            )
        )
    return tuple(found)


def _values(gates: Sequence[Gate]) -> Float[np.ndarray, " gate"]:
    return np.array([gate.value for gate in gates], dtype=float)


def _require_count(top: int) -> None:
    if isinstance(top, bool) or not isinstance(top, int) or top < 0:
        raise ValueError(f"top must be an integer ≥ 0; got {top!r}")
