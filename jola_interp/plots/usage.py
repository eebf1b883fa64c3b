"""How heads are used, as figures: by their gates beside by what they write, since an open gate may write nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float

from jola_interp import selection
from jola_interp.analysis.effects import Effects
from jola_interp.analysis.grids import GridMap, Sheet, reach
from jola_interp.analysis.tables import load_table, stored
from jola_interp.analysis.usage import KINDS, OTHERS, WHOLE, Usage, with_evidence
from jola_interp.edits.jola import Operation
from jola_interp.plots import style
from jola_interp.plots.chart import Chart, Panel, Rule, Series
from jola_interp.plots.charts import draw
from jola_interp.plots.maps import sheet
from jola_interp.plots.style import Renderer, require

if TYPE_CHECKING:
    from jola_interp.runs import Run

TABLE, EFFECTS = "usage", "effects"
"""The names under which a Run keeps the tables."""
NAMED = 3
"""Heads that are named, those that write most."""
DECADES = 3
"""What the colours of sizes tell apart; less than a thousandth of the largest looks alike."""
STREAM = "‖written‖ / ‖stream‖"
_COLOURS = (style.GREY, *style.STATUSES[1:])
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Pair = tuple[Float[np.ndarray, "layer head"], Float[np.ndarray, "layer head"]]
"""A number of each head's additive part, and of its multiplicative part."""


def uses(
    run_or_table: Run | Usage,
    effects: Effects | None = None,
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """Additive against multiplicative, a point per head: P(open), what is written, and what is lost without it.

    Args:
        run_or_table: a Run that holds the table, or the table.
        effects: exact leave-one-out effects (:func:`jola_interp.analysis.effects.leave_one_out`); None takes those
            that the Run holds, and leaves the panel out where there are none.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: effects of another kind or of heads outside the table; an unknown renderer; a Run in which this was
            not measured (NotMeasuredError).
    """
    require(renderer, width)
    if effects is None and not isinstance(run_or_table, Usage):
        effects = stored(run_or_table, EFFECTS, Effects)
    return draw(uses_chart(_table(run_or_table), effects), renderer, width)


def uses_by_layer(run_or_table: Run | Usage, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Heads of each layer by status, beside what they write to the stream by kind.

    Dots are what the layer's heads write together: no more than the bars, and less unless all write in one direction.

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


def effective_size(run_or_table: Run | Usage, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """P(open) of every gate as a map, and beside it what it writes: ‖E[g] a W_O‖ and E‖(E[g] m ⊙ z) W_O‖ / E‖stream‖.

    Layer 0 is at the bottom; white lines part heads that share key and value. Hatching marks a gate that is neither
    open nor shut. Sizes of both kinds have one logarithmic scale over three decades; what is 0 is blank.

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
    return sheet(size_sheet(_table(run_or_table)), renderer, width)


# -- a point per head --------------------------------------------------------------------------------------------------


def uses_chart(table: Usage, effects: Effects | None = None) -> Chart:
    """The chart of :func:`uses`."""
    lost = None if effects is None else _lost(table, effects)
    panels = [_gates_panel(table), _sizes_panel(table)]
    notes = [*table.sentences(), table.tokens_words(), *_size_notes(table)]
    if effects is not None and lost is not None:
        panels.append(_effects_panel(table, effects, lost))
        notes.append(_effects_note(effects))
    elif table.gates == "separate" and len(table.operations) == 2:
        notes.append("What is lost without each part was not measured (part 'effects').")
    return Chart((tuple(panels),), f"{table.title}: how heads are used", tuple(notes), height=1.0)


def _gates_panel(table: Usage) -> Panel:
    rule = selection.parse_rule(table.rule)
    at = rule.threshold if rule.measure == "p_open" else None
    nothing = np.where(table.editable, 0.0, np.nan)
    x, y = (np.asarray(table.p_open.get(kind, nothing), dtype=float) for kind in KINDS)
    hover = {f"E[g] {kind}": np.asarray(value, dtype=float) for kind, value in table.expected.items()}
    return Panel(
        series=_by_status(table, (x, y), hover),
        title="gates",
        x_label="P(open), additive",
        y_label="P(open), multiplicative",
        x_range=(-0.03, 1.03),
        y_range=(-0.03, 1.03),
        rules=() if at is None else (Rule("x", at), Rule("y", at)),
        square=True,
    )


def _sizes_panel(table: Usage) -> Panel:
    """Logarithmic axes, with a lane for exact zeros in front of the first decade."""
    x, y = (table.size(kind) for kind in KINDS)
    zero, ends, ticks = _decades(np.concatenate([x.ravel(), y.ravel()]))
    placed = np.where(x == 0, zero, x), np.where(y == 0, zero, y)
    hover = {
        "written, additive": x,
        "written, multiplicative": y,
        "at the head, additive": table.size("additive", "head"),
        "at the head, multiplicative": table.size("multiplicative", "head"),
    }
    edge = math.sqrt(zero * ticks[1][0])
    return Panel(
        series=_by_status(table, placed, hover),
        title="what is written",
        x_label=f"{STREAM}, additive",
        y_label=f"{STREAM}, multiplicative",
        x_range=ends,
        y_range=ends,
        x_log=True,
        y_log=True,
        x_ticks=ticks,
        y_ticks=ticks,
        rules=(Rule("diagonal"), *(Rule(axis, edge, "solid", style.STATUSES[0]) for axis in ("x", "y"))),
        square=True,
    )


def _effects_panel(table: Usage, effects: Effects, lost: tuple[Pair, Pair]) -> Panel:
    means, errors = lost
    hover = {f"standard error, {kind}": value for kind, value in zip(KINDS, errors, strict=True)}
    return Panel(
        series=_by_status(table, means, hover),
        title="what is lost without it" + (", to first order" if effects.method == "gradient" else ""),
        x_label="ΔNLL without the additive part (nats/token)",
        y_label="ΔNLL without the multiplicative part (nats/token)",
        rules=(Rule("x", 0.0, "solid"), Rule("y", 0.0, "solid"), Rule("diagonal")),
        square=True,
    )


def _by_status(table: Usage, at: Pair, hover: dict[str, Float[np.ndarray, "layer head"]]) -> tuple[Series, ...]:
    """A series of points per status, the rarest on top; the heads that write most are named."""
    named = {(use.layer, use.head) for use in table.top(NAMED)}
    found = []
    for code, (name, count) in enumerate(table.counts().items()):
        places = [(int(i), int(j)) for i, j in zip(*np.nonzero(table.editable & (table.status == code)), strict=True)]
        if not places:
            continue
        index = tuple(np.array(places).T)
        found.append(
            Series(
                x=at[0][index],
                y=at[1][index],
                name=f"{name} · {count}",
                look="points",
                colour=_COLOURS[code],
                labels=tuple(str(table.labels[place]) for place in places),
                named=tuple(i for i, place in enumerate(places) if place in named),
                hover={key: value[index] for key, value in hover.items()},
                opacity=0.75,
            )
        )
    return tuple(found)


def _decades(values: Float[np.ndarray, " n"]) -> tuple[float, tuple[float, float], tuple[tuple[float, str], ...]]:
    """(where zeros stand, ends of the axis, ticks), for numbers ≥ 0 on a logarithmic axis."""
    known = values[np.isfinite(values) & (values > 0)]
    low = math.floor(np.log10(known.min())) if known.size else -2
    high = max(math.ceil(np.log10(known.max())) if known.size else 0, low + 1)
    zero = 10.0 ** (low - 0.12 * (high - low))
    step = -(-(high - low) // 5)
    ticks = ((zero, "0"), *((10.0**k, f"10{str(k).translate(_RAISED)}") for k in range(low, high + 1, step)))
    return zero, (zero / 10 ** (0.06 * (high - low)), 10 ** (high + 0.04 * (high - low))), ticks


def _size_notes(table: Usage) -> list[str]:
    x, y = (table.size(kind) for kind in KINDS)
    still = int(((x == 0) & (y == 0)).sum())
    return [
        "P(open) alone is no size: half the gate before twice the vector is the same edit, and writes the same.",
        f"Written: norms at the inference gate ({table.training.inference}) over that of the stream that enters the "
        f"block; on the axis marked 0 are exact zeros ({still} heads of {table.editable.sum()} write nothing). "
        f"Named: the {NAMED} heads that write most.",
    ]


# -- effects -----------------------------------------------------------------------------------------------------------


def _lost(table: Usage, effects: Effects) -> tuple[Pair, Pair] | None:
    """Means and standard errors of what is lost without each head's parts; None where a kind was not measured."""
    if effects.method == "alone":
        raise ValueError("effects: of gates left out one by one (leave_one_out), not of gates alone")
    places = {kind: _places(effects, kind) for kind in KINDS}
    if not all(places.values()):
        return None
    layers, heads = table.shape
    found = np.full((2, 2, layers, heads), np.nan)  # [mean or error, kind, layer, head]
    for row, kind in enumerate(KINDS):
        for place in places[kind]:
            gate = effects.gates[place]
            if not (gate.layer < layers and gate.unit < heads):
                raise ValueError(f"effects: {gate.label} is not among the table's {layers} × {heads} heads")
            found[:, row, gate.layer, gate.unit] = effects.effect[place], effects.se[place]
    return (found[0, 0], found[0, 1]), (found[1, 0], found[1, 1])


def _places(effects: Effects, kind: str) -> list[int]:
    return [i for i, gate in enumerate(effects.gates) if gate.site == "heads" and gate.kind == kind]


def _effects_note(effects: Effects) -> str:
    chosen = [i for i, gate in enumerate(effects.gates) if gate.site == "heads" and effects.measured[i]]
    errors = effects.se[chosen]
    typical = f", standard error {np.median(errors):.2g} (median)" if np.isfinite(errors).any() else ""
    return f"Lost: NLL of the answers without that part − NLL, mean over {effects.by_row.shape[1]} rows{typical}."


# -- by layer ----------------------------------------------------------------------------------------------------------


def layers_chart(table: Usage) -> Chart:
    """The chart of :func:`uses_by_layer`."""
    layers = np.arange(table.shape[0], dtype=float)
    labels = tuple(f"L{layer:.0f}" for layer in layers)
    across = (-0.5, len(layers) - 0.5)
    counts = {
        name: (table.editable & (table.status == code)).sum(1).astype(float)
        for code, name in enumerate(selection.STATUSES)
        if code
    }
    sizes = {kind: np.nansum(table.size(kind), axis=1) for kind in KINDS}
    colours = dict(zip(selection.STATUSES, style.STATUSES, strict=True))
    together = Series(
        layers,
        table.layer_sums[WHOLE][OTHERS],
        "the layer's heads together",
        "points",
        style.INK,
        labels=labels,
        size=5,
    )
    panels = (
        Panel(_stack(layers, counts, colours, labels), f"heads, {table.rule}", "layer", "heads", across),
        Panel(
            (*_stack(layers, sizes, style.KINDS, labels), together), "what they write", "layer", f"Σ {STREAM}", across
        ),
    )
    notes = (*_layer_notes(table), *table.caveats(), table.tokens_words())
    return Chart((panels,), f"{table.title}: uses by layer", notes, height=0.75)


def _stack(
    layers: Float[np.ndarray, " layer"],
    parts: dict[Any, Float[np.ndarray, " layer"]],
    colours: dict[str, str],
    labels: tuple[str, ...],
) -> tuple[Series, ...]:
    """Bars on top of each other, in the order of the parts; a part that is 0 everywhere is left out, but not all."""
    shown = [name for name, values in parts.items() if values.any()] or list(parts)[:1]
    found, foot = [], np.zeros(len(layers))
    for name in shown:
        found.append(Series(layers, foot + parts[name], name, "bars", colours[name], low=foot, labels=labels))
        foot = foot + parts[name]
    return tuple(found)


def _layer_notes(table: Usage) -> tuple[str, ...]:
    counts = ", ".join(f"{count} {name}" for name, count in table.counts().items())
    return (
        f"Heads: {counts}, of {table.editable.sum()} heads.",
        f"Written: norms of what single heads write at the inference gate ({table.training.inference}) over that of "
        "the stream, summed by kind. Dots: the norm of what all of them write together; it reaches the bars only where "
        "all write in one direction, and is identified where a single head's offset is not.",
    )


# -- maps --------------------------------------------------------------------------------------------------------------


def size_sheet(table: Usage) -> Sheet:
    """The sheet of :func:`effective_size`."""
    kinds = cast(tuple[Operation, ...], table.operations)
    sizes = {kind: table.size(kind, gate="expected") for kind in kinds}
    top = reach("magnitude", *sizes.values())[1]
    span = (top / 10**DECADES, top)
    rows = tuple((_gate_map(table, kind), _size_map(table, kind, sizes[kind], span)) for kind in kinds)
    notes = (
        "Written: ‖E[g] a W_O‖ and E‖(E[g] m ⊙ z) W_O‖ over E‖stream‖; the edit itself uses the "
        f"{table.training.inference} gate at inference (on hovering). Colours are logarithmic and end at a thousandth "
        "of the largest. Hatching marks gates that have not decided.",
        *table.caveats(),
        table.tokens_words(),
    )
    return Sheet(
        rows,
        f"{table.title}: gates and what they write",
        notes,
        headings=("P(open)", "written at E[g]"),
        names=tuple(kinds),
    )


def _gate_map(table: Usage, kind: Operation) -> GridMap:
    hover = {"E[g]": table.expected[kind], "gate at inference": table.gate[kind]}
    return _map(table, kind, table.p_open[kind], f"P(open), {kind}", (0.0, 1.0), hover)


def _size_map(
    table: Usage, kind: Operation, values: Float[np.ndarray, "layer head"], span: tuple[float, float]
) -> GridMap:
    hover = {
        "at the inference gate": table.size(kind),
        "at first tokens, E[g]": table.size(kind, gate="expected", first=True),
        "at the head, E[g]": table.size(kind, "head", gate="expected"),
    }
    return _map(table, kind, values, f"written, {kind}", span, hover, STREAM)


def _map(
    table: Usage,
    kind: Operation,
    values: Float[np.ndarray, "layer head"],
    title: str,
    span: tuple[float, float],
    hover: dict[str, Float[np.ndarray, "layer head"]],
    unit: str = "",
) -> GridMap:
    """A map of probabilities, or of magnitudes if it has a unit."""
    return GridMap(
        values=values,
        title=title,
        labels=table.labels,
        mask=table.editable,
        range=span,
        kind="magnitude" if unit else "probability",
        marked=table.undecided[kind],
        hover=hover,
        group=table.group,
        unit=unit,
        log=bool(unit),
    )


def _table(run_or_table: Run | Usage) -> Usage:
    """The table as given, or the Run's with what its evidence card knows by now."""
    if isinstance(run_or_table, Usage):
        return run_or_table
    return with_evidence(load_table(run_or_table, TABLE, Usage), run_or_table)
