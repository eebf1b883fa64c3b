"""What an edit writes, as figures: tokens up and down, lens against truth, and which head moves a contrast directly."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from jola_interp.analysis.readout import TRUSTED, Readout
from jola_interp.analysis.tables import load_table
from jola_interp.plots.chart import Chart, Panel, Rule, Series
from jola_interp.plots.charts import draw
from jola_interp.plots.maps import sheet
from jola_interp.plots.style import GREY, INK, KINDS, PURPLE, Renderer, require
from jola_interp.runs import Run

Unit = Literal["head", "layer"]
TABLE = "readout"
"""The name under which a Run keeps the table."""
COLUMNS = 3
"""Panels in a row."""
NAMED = 6
"""Points of a kind with their label beside them."""
_NULL_NOTE = (
    "Thin bars: from the least to the largest r of that null; inside its bar a point tells nothing of its own.",
)
_NOTHING = Series(np.empty(0), np.empty(0), "", legend=False)


def readout(
    run_or_table: Run | Readout,
    unit: Unit = "head",
    most: int = 9,
    tokens: int = 5,
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """The tokens that each part of the edit raises and lowers most by the logit lens, with their true change.

    Bars are the lens, dots the true change of the same tokens when the part acts alone; dashed rules are the largest
    |Δlogit| that 95 % of random vectors of the same norm stay below. Where the lens does not predict the true change
    the bars are grey and the tokens are not named.

    Args:
        run_or_table: a Run that holds the table, or the table.
        unit: ``head`` for single heads, ``layer`` for the sum of a layer's offsets.
        most: how many panels, of the vectors with the largest |Δlogit|.
        tokens: how many at each end.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Raises:
        ValueError: a field outside its range; a Run in which this was not measured (NotMeasuredError).
    """
    require(renderer, width)
    if unit not in get_args(Unit):
        raise ValueError(f"unit must be one of {', '.join(get_args(Unit))}; got {unit!r}")
    for name, value in {"most": most, "tokens": tokens}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer ≥ 1; got {value!r}")
    return draw(token_chart(_table(run_or_table), unit, most, tokens), renderer, width)


def lens_against_truth(run_or_table: Run | Readout, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """How well the logit lens predicts what each part of the edit does, against how much that part writes.

    Thin bars are the null of r: from the least to the largest r of a few random vectors of the same norm, the lens of
    each held against the change that it makes itself. Below the dashed rule no tokens are listed.

    Arguments and errors as in :func:`readout`.
    """
    require(renderer, width)
    return draw(truth_chart(_table(run_or_table)), renderer, width)


def attribution_map(run_or_table: Run | Readout, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """What each head adds directly to the contrast of the task, beside a random direction of the same norm.

    Arguments as in :func:`readout`.

    Raises:
        ValueError: a table without a contrast; a Run in which this was not measured (NotMeasuredError).
    """
    require(renderer, width)
    return sheet(_table(run_or_table).attribution_sheet(), renderer, width)


def token_chart(table: Readout, unit: Unit, most: int, tokens: int) -> Chart:
    """The chart of :func:`readout`."""
    shown = table.of(unit).top(most)
    shown = shown.top(int((shown.norm > 0).sum()))  # what writes nothing comes last
    panels = [_bars(shown, place, tokens) for place in range(len(shown))] or [
        Panel((_NOTHING,), title=f"no {unit} writes")
    ]
    columns = min(COLUMNS, len(panels))
    rows = tuple(tuple(panels[start : start + columns]) for start in range(0, len(panels), columns))
    notes = ["Dots: true change of the same tokens' logits."] if table.rows else []
    notes += ["Dashed: 95 % of the null's largest |Δlogit|. · is a space, ↵ a newline, ⇥ a tab."]
    if not shown.trusted.all():
        notes.append("Grey: tokens are not named, since the lens does not tell what the part does.")
    return Chart(rows, f"{table.title}: what each {unit} writes", (*table.notes(), *notes))


def truth_chart(table: Readout) -> Chart:
    """The chart of :func:`lens_against_truth`."""
    series = [
        *_against(table.of("head", "additive"), "heads, additive", KINDS["additive"]),
        *_against(table.of("head", "multiplicative"), "heads, multiplicative", KINDS["multiplicative"]),
        *_against(table.of("layer"), "layers, all offsets", PURPLE),
    ]
    panel = Panel(
        tuple(series) or (_NOTHING,),
        x_label="‖what W_O writes‖ over ‖stream it is added to‖",
        y_label="r of lens and true change",
        x_log=True,
        y_range=(-1.05, 1.05),
        rules=(Rule("y", TRUSTED, "dash"), Rule("y", 0.0, "solid")),
    )
    notes = (*table.notes(), *(_NULL_NOTE if np.isfinite(table.random_range).any() else ()))
    return Chart(((panel,),), f"{table.title}: logit lens against the true change", notes)


def _bars(table: Readout, place: int, tokens: int) -> Panel:
    """One vector: tokens from the most raised to the most lowered, downwards."""
    delta = np.append(table.top_delta[place, :tokens], table.bottom_delta[place, :tokens][::-1]).astype(float)
    true = np.append(table.top_true[place, :tokens], table.bottom_true[place, :tokens][::-1]).astype(float)
    names = (*table.top_tokens[place][:tokens], *table.bottom_tokens[place][:tokens][::-1])
    trusted, rows = bool(table.trusted[place]), np.arange(len(delta), dtype=float)
    kind, said = table.kinds[place], table.sentences[place]
    series = [
        Series(
            x=delta, y=rows, look="bars", name=f"lens, {kind}" if trusted else "lens, not trusted",
            colour=KINDS[kind] if trusted else GREY, labels=names if trusted else (),
        ),
        Series(x=true, y=rows, look="points", name="true change", colour=INK, labels=names if trusted else (), size=5),
    ]  # fmt: skip
    null = float(table.null_peak_95[place])
    return Panel(
        tuple(series[: 2 if np.isfinite(true).any() else 1]),
        title=f"{table.labels[place]} {kind}: {said or _told(table, place)}",
        x_label="Δlogit",
        y_ticks=tuple((float(row), name if trusted else " ") for row, name in zip(rows, names, strict=True)),
        rules=(Rule("x", 0.0, "solid"), Rule("x", null, "dash"), Rule("x", -null, "dash")),
        flipped=True,
        horizontal=True,
    )


def _against(table: Readout, name: str, colour: str) -> list[Series]:
    """The points of one kind, the largest few named, and under them the null of r."""
    share, r = (table.norm / table.stream).astype(float), table.pearson.astype(float)
    if not np.isfinite(r).any():
        return []
    low, middle, high = table.random_range.astype(float).T
    hover = {"Spearman": table.spearman, "median r of random vectors": middle, "largest |Δlogit|": table.peak}
    named = tuple(int(i) for i in np.argsort(-share, kind="stable")[:NAMED] if np.isfinite(r[i]))
    null = Series(
        share, middle, f"{name}: random", "points", colour, low=low, high=high, size=1, opacity=0.5, legend=False
    )
    points = Series(share, r, name, "points", colour, labels=table.labels, named=named, hover=hover)
    return [null, points] if np.isfinite(middle).any() else [points]


def _told(table: Readout, place: int) -> str:
    """r, and what random vectors get."""
    random = float(table.random_range[place, 1])
    return f"r = {table.pearson[place]:.2f}" + (f" (random {random:.2f})" if np.isfinite(random) else "")


def _table(run_or_table: Run | Readout) -> Readout:
    return run_or_table if isinstance(run_or_table, Readout) else load_table(run_or_table, TABLE, Readout)
