"""Gates counted: per layer, per threshold, over training, and under each way to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float

from jola_interp import selection
from jola_interp.analysis import dynamics, profile
from jola_interp.analysis.dynamics import Budget, Closing
from jola_interp.analysis.gate_gap import GateGap
from jola_interp.analysis.gate_gap import gate_gap as measured_gap
from jola_interp.analysis.grids import Sheet
from jola_interp.analysis.profile import EITHER, LayerProfile, Thresholds
from jola_interp.edits.base import Site
from jola_interp.plots import style
from jola_interp.plots.chart import Chart, Panel, Rule, Series
from jola_interp.plots.charts import draw
from jola_interp.plots.maps import sheet
from jola_interp.plots.style import Renderer, require

if TYPE_CHECKING:
    from jola_interp.runs import Run

COLOURS = {**style.KINDS, EITHER: style.INK}
GATES = {"sampled": "sampled, as trained", "expected": "E[g], 0 below .0881", "point": "point", "hard": "hard, 0 or 1"}
"""Ways to read a gate, as they are named beside the axis."""
_STEP = "optimiser step"
_MARKS = (style.VERMILION, style.PURPLE, style.GREEN, style.SKY)
T = TypeVar("T")


def layer_profile(
    run_or_table: Run | LayerProfile,
    rule: str = selection.DEFAULT_RULE,
    site: Site = "heads",
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """Heads per layer by status, beside the range of as many heads drawn at random; Σ P(open) per layer below.

    Args:
        run_or_table: a Run with gates at ``site``, or its :func:`~jola_interp.analysis.profile.layer_profile`, which
            has its rule and site.
        rule: when a gate counts as open (see :mod:`jola_interp.selection`).
        site: where the gates act.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an edit without gates at ``site``, a rule outside the grammar, or an unknown renderer.
    """
    require(renderer, width)
    table = _table(run_or_table, LayerProfile, lambda run: profile.layer_profile(run, rule, site))
    return draw(chart_of_layers(table), renderer, width)


def thresholds(
    run_or_table: Run | Thresholds, site: Site = "heads", renderer: Renderer = "plotly", width: float | None = None
) -> Any:
    """How many heads have a gate above a threshold on P(open), for all thresholds, with the usual rules marked.

    Args:
        run_or_table: a Run with gates at ``site``, or its :func:`~jola_interp.analysis.profile.thresholds`.
        site: where the gates act.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an edit without gates at ``site``, or an unknown renderer.
    """
    require(renderer, width)
    table = _table(run_or_table, Thresholds, lambda run: profile.thresholds(run, site))
    return draw(chart_of_thresholds(table), renderer, width)


def budget(
    run_or_table: Run | Budget,
    rule: str = selection.DEFAULT_RULE,
    site: Site = "heads",
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """Open gates over training, expected and by a rule; below them λ of each kind, and the training loss.

    Args:
        run_or_table: a Run with gates at ``site``, or its :func:`~jola_interp.analysis.dynamics.budget`, which has its
            rule and site.
        rule: when a gate counts as open (see :mod:`jola_interp.selection`).
        site: where the gates act.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an edit without gates at ``site``, no record of them, a rule outside the grammar, or an unknown
            renderer.
    """
    require(renderer, width)
    table = _table(run_or_table, Budget, lambda run: dynamics.budget(run, rule, site))
    return draw(chart_of_budget(table), renderer, width)


def closing(
    run_or_table: Run | Closing, site: Site = "heads", renderer: Renderer = "plotly", width: float | None = None
) -> Any:
    """How many gates have decided for good, shut or open, over training; the training loss below.

    Args:
        run_or_table: a Run with gates at ``site``, or its :func:`~jola_interp.analysis.dynamics.closing`.
        site: where the gates act.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an edit without gates at ``site``, no record of them, or an unknown renderer.
    """
    require(renderer, width)
    table = _table(run_or_table, Closing, lambda run: dynamics.closing(run, site))
    return draw(chart_of_closing(table), renderer, width)


def gate_gap(run_or_table: Run | GateGap, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Cross-entropy of the same validation rows with sampled gates, as in training, and with each inference gate.

    Args:
        run_or_table: a Run with a convergence stamp, or its :func:`~jola_interp.analysis.gate_gap.gate_gap`.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: no stamp, or an unknown renderer.
    """
    require(renderer, width)
    return draw(chart_of_gap(_table(run_or_table, GateGap, measured_gap)), renderer, width)


def strip(
    run_or_table: Run | Sheet, site: Site = "heads", renderer: Renderer = "plotly", width: float | None = None
) -> Any:
    """P(open) of every head (rows, in order of layer) over training (columns), a panel per kind of gate.

    Args:
        run_or_table: a Run with gates at ``site``, or its :func:`~jola_interp.analysis.dynamics.strips`.
        site: where the gates act.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an edit without gates at ``site``, no record of them, or an unknown renderer.
    """
    require(renderer, width)
    return sheet(_table(run_or_table, Sheet, lambda run: dynamics.strips(run, site)), renderer, width)


def chart_of_layers(table: LayerProfile) -> Chart:
    """Stacked bars by status over the random band; below, Σ P(open) and the counts by the rule."""
    layers = np.arange(len(table.editable), dtype=float)
    across = (-0.5, len(layers) - 0.5)
    statuses = Panel(
        series=_over_chance(table, layers, _stack(table, layers)),
        title=f"{_noun(table.site)} by status",
        y_label=_noun(table.site),
        x_range=across,
    )
    expected = Panel(
        series=(
            *(Series(layers, value, f"Σ P(open), {kind}", colour=COLOURS[kind], labels=_layers(layers))
              for kind, value in table.expected.items()),
            *(Series(layers, value.astype(float), f"{table.rule}, {kind}", "points", COLOURS[kind],
                     labels=_layers(layers), size=5) for kind, value in table.opened.items()),
            Series(layers, table.editable.astype(float), "editable", colour=style.GREY, dash="dot"),
        ),
        title="open gates",
        x_label="layer",
        y_label="gates",
        x_range=across,
        y_range=(0.0, max(float(table.editable.max()), 1.0) * 1.04),
    )  # fmt: skip
    title = f"{table.title}: layers ({table.kept})"
    return Chart(((statuses,), (expected,)), title, table.sentences(), height=0.36)


def _stack(table: LayerProfile, layers: Float[np.ndarray, " layer"]) -> list[Series]:
    """Bars on top of each other, one series per status that occurs."""
    found, foot = [], np.zeros(len(layers))
    for status, colour in zip(selection.STATUSES[1:], style.STATUSES[1:], strict=True):
        counts = table.counts[status].astype(float)
        if not counts.any():
            continue
        options: dict[str, Any] = {"low": foot, "labels": _layers(layers), "hover": {"heads": counts}}
        found.append(Series(layers, foot + counts, f"{status} · {counts.sum():.0f}", "bars", colour, **options))
        foot = foot + counts
    return found


def _over_chance(table: LayerProfile, layers: Float[np.ndarray, " layer"], bars: list[Series]) -> tuple[Series, ...]:
    """The random range behind the bars, its ends and mean in front of them, in steps as wide as a layer."""
    edges = np.stack([layers - 0.5, layers + 0.5], axis=1).reshape(-1)
    low, mean, high = (np.repeat(value, 2) for value in (table.random_low, table.random_mean, table.random_high))
    band = Series(edges, mean, "as many at random, 95 %", "band", style.GREY, low=low, high=high, opacity=0.3)
    ends = [
        Series(edges, value, f"as many at random, {name}", colour=style.INK, size=0.8, legend=False)
        for name, value in (("2.5 %", low), ("97.5 %", high))
    ]
    middle = Series(edges, mean, "as many at random, mean", colour=style.INK, dash="dot", size=1)
    return band, *bars, *ends, middle


def chart_of_thresholds(table: Thresholds) -> Chart:
    """A falling line per kind, and for heads with a gate of either kind; the marked rules are points on the last."""
    kinds = _drawn(table.counts)
    lines = [
        Series(table.thresholds, table.counts[kind].astype(float), _name(kind, kinds), colour=COLOURS[kind])
        for kind in kinds
    ]
    panel = Panel(
        series=(*lines, *_marks(table)),
        x_label="threshold on P(open)",
        y_label=_noun(table.site),
        x_range=(-0.02, 1.02),
        y_range=(0.0, table.units * 1.04),
        rules=tuple(Rule("x", mark.threshold) for mark in table.marks),
    )
    title = f"{table.title}: {_noun(table.site)} by threshold"
    return Chart(((panel,),), title, table.sentences(), height=0.55)


def _marks(table: Thresholds) -> list[Series]:
    """A point per rule; rules that stand at one place and count alike share it."""
    names: dict[tuple[float, int], list[str]] = {}
    for mark in table.marks:
        names.setdefault((round(mark.threshold, 2), mark.counts[EITHER]), []).append(mark.rule)
    found = []
    for place, ((threshold, count), rules) in enumerate(names.items()):
        at, colour = np.array([threshold]), _MARKS[place % len(_MARKS)]
        name = f"{', '.join(rules)}: {count:,}"
        found.append(Series(at, np.array([float(count)]), name, "points", colour, size=9))
    return found


def chart_of_budget(table: Budget) -> Chart:
    """Counts above, λ below them, the loss at the bottom; one step axis for all."""
    steps, kinds = table.steps.astype(float), _drawn(table.expected)
    counts = [Series(steps, table.expected[kind], _name(kind, kinds), colour=COLOURS[kind]) for kind in kinds]
    counts += [
        Series(steps, table.opened[kind].astype(float), f"{_name(kind, kinds)}, {table.rule}", colour=COLOURS[kind],
               dash="dash", legend=False)
        for kind in kinds
    ]  # fmt: skip
    dashes = ("solid", "dash")  # one λ for both kinds: neither line hides the other
    weights = [
        Series(steps, value, f"λ, {kind}", colour=COLOURS[kind], dash=dashes[place], legend=False)  # type: ignore[arg-type]
        for place, (kind, value) in enumerate(table.weights.items())
    ]
    across, kept = _span(steps), _kept(table.kept, table.steps)
    top = table.units * 1.04
    panels = [
        Panel(tuple(counts), "open gates", "", "gates, or heads", across, (0.0, top), rules=kept),
        Panel(tuple(weights), "λ of each kind", "", "λ", across, rules=kept),
        _loss_panel(table, steps, across, kept),
    ]
    notes = (*table.sentences(), *_kept_note(table.kept, table.steps))
    return Chart(tuple((panel,) for panel in panels), f"{table.title}: gate budget", notes, height=0.28)


def chart_of_closing(table: Closing) -> Chart:
    """Gates that have decided, by kind and outcome; the loss below."""
    steps = table.steps.astype(float)
    across, rules = _span(steps), _kept(table.kept, table.steps)
    if table.fixed is not None and table.fixed < table.steps[-1]:
        rules = (*rules, Rule("x", float(table.fixed)))
    lines = []
    for name, counts in table.over_time().items():
        kind, outcome = name.split(", ")
        dash = "solid" if outcome == "shut" else "dash"
        lines.append(Series(steps, counts.astype(float), name, colour=COLOURS[kind], dash=dash))  # type: ignore[arg-type]
    top = max([table.kinds.count(kind) for kind in set(table.kinds)], default=1) * 1.04
    decided = Panel(tuple(lines), "decided for good", "", "gates", across, (0.0, top), rules=rules)
    notes = (*table.sentences(), *_kept_note(table.kept, table.steps))
    panels = ((decided,), (_loss_panel(table, steps, across, rules),))
    return Chart(panels, f"{table.title}: when gates decide", notes, height=0.36)


def chart_of_gap(table: GateGap) -> Chart:
    """A point per gate, the sampled one with its interval; dotted, how near the hard one has to be."""
    places = np.arange(len(table.gates), dtype=float)
    drawn = table.gates.index("sampled")
    others = np.array([place for place in places if place != drawn], dtype=np.int64)
    at = slice(drawn, drawn + 1)
    sampled = Series(
        table.ce[at], places[at], "sampled", "points", style.PURPLE, low=table.low[at], high=table.high[at], size=9
    )
    fixed = Series(
        table.ce[others], places[others], "at inference", "points", style.BLUE, size=9,
        labels=tuple(table.gates[i] for i in others), hover={"CE − CE(sampled)": table.above_sampled[others]},
    )  # fmt: skip
    names = [GATES.get(gate, gate) + (" (used)" if gate == table.used else "") for gate in table.gates]
    panel = Panel(
        series=(sampled, fixed),
        x_label="CE of validation rows (nats per answer token)",
        y_range=(-0.6, len(places) - 0.4),
        y_ticks=tuple(zip(places.tolist(), names, strict=True)),
        rules=tuple(Rule("x", float(table.ce[drawn]) + side * table.bound) for side in (-1, 1)),
        flipped=True,
        horizontal=True,
    )
    return Chart(((panel,),), f"{table.title}: training gate and inference gate", table.sentences(), height=0.3)


def _loss_panel(
    table: Budget | Closing, steps: Float[np.ndarray, " step"], across: tuple[float, float], rules: tuple[Rule, ...]
) -> Panel:
    """Training CE of each record, and its mean."""
    single = table.window == 1
    series = [Series(steps, table.ce, "train CE", colour=style.SKY, size=1, opacity=1 if single else 0.5)]
    if not single:
        series.append(Series(steps, table.smooth, f"train CE, mean of {table.window}", colour=style.SKY, size=2.5))
    return Panel(tuple(series), "training loss", _STEP, "CE (nats per token)", across, rules=rules)


def _table(run_or_table: Any, kind: type[T], make: Callable[[Run], T]) -> T:
    return run_or_table if isinstance(run_or_table, kind) else make(run_or_table)


def _drawn(counts: Mapping[str, Any]) -> list[str]:
    """The kinds, and "either" where there are two."""
    return [kind for kind in counts if kind != EITHER or len(counts) > 2]


def _name(kind: str, kinds: list[str]) -> str:
    return "either, by head" if kind == EITHER and len(kinds) > 1 else kind


def _layers(layers: Float[np.ndarray, " layer"]) -> tuple[str, ...]:
    return tuple(f"L{layer:.0f}" for layer in layers)


def _span(steps: Float[np.ndarray, " step"]) -> tuple[float, float]:
    pad = 0.01 * float(np.ptp(steps)) or 0.5
    return float(steps[0]) - pad, float(steps[-1]) + pad


def _kept(kept: int, steps: np.ndarray) -> tuple[Rule, ...]:
    return () if kept == steps[-1] else (Rule("x", float(kept), "dash"),)


def _kept_note(kept: int, steps: np.ndarray) -> tuple[str, ...]:
    return () if kept == steps[-1] else (f"Dashed line: step {kept}, which the Run keeps.",)


def _noun(site: str) -> str:
    return "heads" if site == "heads" else "units"
