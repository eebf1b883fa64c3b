"""Studies as maps: which tasks select the same heads, how often each head is selected, which heads tasks share."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jola_interp.analysis.grids import GridMap, Sheet, Ticks, reach
from jola_interp.analysis.offset_cosines import OffsetCosines
from jola_interp.analysis.overlaps import Index, Overlaps
from jola_interp.analysis.shared_heads import CATEGORIES, SharedHeads
from jola_interp.analysis.stability import Stability
from jola_interp.analysis.transfer import Transfer
from jola_interp.plots.maps import sheet
from jola_interp.plots.style import Renderer, require

WRITTEN = 12
"""Matrices of more tasks have no numbers in their cells."""
SIGNIFICANT = 0.05
NAMES: dict[str, str] = {"jaccard": "Jaccard", "weighted": "Ruzicka on P(open)", "coefficient": "overlap coefficient"}


def overlap_matrix(
    table: Overlaps,
    index: Index = "jaccard",
    rule: str | None = None,
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """Task by task, how far the selected heads overlap above chance; on the diagonal other seeds of the same task.

    Tasks that overlap stand together. A star marks p < .05 for all cells together; in matrices of more than twelve
    tasks cells without it are hatched instead.

    Args:
        table: what :func:`~jola_interp.analysis.overlaps.overlaps` gave.
        index: jaccard, weighted or coefficient.
        rule: of the table; None is the first.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an index or rule that the table does not have, an unknown renderer, or a width that does not go with
            it.
    """
    require(renderer, width)
    return sheet(overlap_sheet(table, index, rule), renderer, width)


def offset_matrix(table: OffsetCosines, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Task by task, the cosine of the offsets at heads open in both; on the diagonal other seeds of the same task.

    Args:
        table: what :func:`~jola_interp.analysis.offset_cosines.offset_cosines` gave.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    return sheet(offset_sheet(table), renderer, width)


def selection_frequency(table: Stability, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """In how many runs of each task a head is selected, a map for each task.

    Args:
        table: what :func:`~jola_interp.analysis.stability.stability` gave.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    return sheet(frequency_sheet(table), renderer, width)


def shared_map(table: SharedHeads, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Core heads, specialists and heads that no run selects; beside them how many tasks select each head.

    Args:
        table: what :func:`~jola_interp.analysis.shared_heads.shared_heads` gave.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    return sheet(shared_sheet(table), renderer, width)


def transfer_matrix(table: Transfer, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """What each task's edit gains on each other, as a share of what that one's own edit gains.

    Args:
        table: what :func:`~jola_interp.analysis.transfer.transfer` gave.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    return sheet(transfer_sheet(table), renderer, width)


# -- sheets --------------------------------------------------------------------------------------------------------


def overlap_sheet(table: Overlaps, index: Index = "jaccard", rule: str | None = None) -> Sheet:
    """The sheet of :func:`overlap_matrix`."""
    found = table.matrix(index, rule)
    name = NAMES[index]
    hover = {name: found.value, "chance": found.chance, "95 % from": found.low, "to": found.high, "p": found.p}
    hover |= {"p, all cells": found.adjusted, "pairs of runs": table.pairs.astype(float)}
    panel = square(found.excess, table.groups, f"{name}, {found.rule}", f"{name} above chance", hover)
    panel, told = _starred(panel, found.adjusted < SIGNIFICANT)
    notes = (
        "Diagonal: other seeds of the same task, the most that another task could be expected to reach.",
        told,
        *table.notes,
        found.sentence(),
    )
    return Sheet(((panel,),), "Do tasks select the same heads?", notes)


def offset_sheet(table: OffsetCosines) -> Sheet:
    """The sheet of :func:`offset_matrix`."""
    hover = {"chance": table.chance, "95 % from": table.low, "to": table.high, "p": table.p}
    hover |= {
        "p, all cells": table.adjusted,
        "heads open in both": table.heads,
        "pairs of runs": table.pairs.astype(float),
    }
    panel = square(table.value, table.groups, "offsets at heads open in both", "cosine", hover)
    panel, told = _starred(replace(panel, absent="no head in common"), table.adjusted < SIGNIFICANT)
    notes = ("Diagonal: other seeds of the same task.", told, *table.notes, table.sentence())
    return Sheet(((panel,),), "Do trainings write the same offsets?", notes)


def frequency_sheet(table: Stability) -> Sheet:
    """The sheet of :func:`selection_frequency`: rows of at most four maps, the last the mean where one is left over."""
    kept, told = several(table)
    panels = [_frequency(table, table.frequency[i], f"{table.groups[i]} ({len(table.sizes[i])} runs)") for i in kept]
    columns = _columns(len(panels))
    if len(panels) % columns:
        panels.append(_frequency(table, table.frequency[kept].mean(0), "mean of all"))
    rows = tuple(tuple(panels[i : i + columns]) for i in range(0, len(panels), columns))
    notes = (
        "Share of the runs of a task that select a head. With few runs most shares below 1 are what any luck would "
        "give: read them with the stability index and its null.",
        *told,
    )
    return Sheet(rows, "How often each head is selected", notes)


def shared_sheet(table: SharedHeads) -> Sheet:
    """The sheet of :func:`shared_map`."""
    mask = table.codes >= 0
    votes = np.where(mask, table.votes.mean(0), np.nan)
    common: dict[str, Any] = {"labels": table.labels, "mask": mask, "group": table.kv_group}
    status = GridMap(
        np.where(mask, table.codes, np.nan).astype(float),
        title="by how many tasks select it",
        range=(0.0, len(CATEGORIES) - 1.0),
        kind="status",
        hover={"tasks": table.n_tasks.astype(float), "mean share of runs": votes},
        categories=tuple(range(len(CATEGORIES))),
        words=CATEGORIES,
        **common,
    )
    tasks = GridMap(
        np.where(mask, table.n_tasks, np.nan).astype(float),
        title="how many tasks",
        range=(0.0, float(len(table.tasks))),
        kind="magnitude",
        unit="tasks that select the head",
        **common,
    )
    told = [
        f"{one.category} {one.heads} (chance {one.expected:.1f}, {one.low:.0f} to {one.high:.0f})"
        for one in table.counts
    ]
    notes = (f"{table.rule}. {'; '.join(told)}.", *table.notes, *_kind_notes(table))
    return Sheet(((status, tasks),), "Core heads and specialists", notes, margin=True)


def transfer_sheet(table: Transfer) -> Sheet:
    """The sheet of :func:`transfer_matrix`."""
    hover = {"95 % from": table.low, "to": table.high, "rows": table.rows.astype(float)}
    if table.overlap is not None:
        hover[table.overlap_name] = table.overlap
    panel = square(table.gain, table.tasks, "relative gain", "share of the target's own gain", hover, " → ")
    panel = replace(panel, x_label="used on", y_label="learnt on", absent="not measured")
    if len(table.tasks) <= WRITTEN:
        texts = [[_number(value) for value in row] for row in table.gain]
        panel = replace(panel, texts=np.array(texts, dtype=object))
    notes = ("1 is as good as the target's own edit, 0 is none, below 0 is harm.", *table.notes)
    return Sheet(((panel,),), "What is learnt on one task and used on another", notes)


def square(
    values: Float[np.ndarray, "task task"],
    names: tuple[str, ...],
    title: str,
    unit: str,
    hover: dict[str, Float[np.ndarray, "task task"]],
    between: str = " and ",
) -> GridMap:
    """A matrix of tasks, the first at the top, on colours around zero."""
    ticks: Ticks = tuple((float(place), name) for place, name in enumerate(names))
    labels = np.array([[f"{one}{between}{other}" for other in names] for one in names], dtype=object)
    return GridMap(
        values.astype(float),
        title=title,
        labels=labels.reshape(values.shape),
        mask=np.isfinite(values),
        range=reach("signed", values),
        kind="signed",
        x_label="",
        y_label="",
        hover=hover,
        x_ticks=ticks,
        y_ticks=ticks,
        unit=unit,
        flipped=True,
        absent="no pair of runs",
        square=True,
    )


def several(table: Stability) -> tuple[list[int], tuple[str, ...]]:
    """Places of the groups of more than one run, and a note that names the others; all, where no group has more."""
    kept = [i for i, sizes in enumerate(table.sizes) if len(sizes) > 1]
    alone = [name for name, sizes in zip(table.groups, table.sizes, strict=True) if len(sizes) < 2]
    if not kept or not alone:
        return list(range(len(table.groups))), ()
    return kept, (f"Not drawn, of one run alone: {', '.join(alone)}.",)


def _starred(panel: GridMap, clear: Bool[np.ndarray, "task task"]) -> tuple[GridMap, str]:
    """Numbers with stars in the cells, or, of many tasks, hatching where there would be none; and what it means."""
    told = "p < .05 for all cells together (max T of the draws)."
    if len(clear) > WRITTEN:
        return replace(panel, marked=~clear & ~panel.blank, hatch="p ≥ .05"), f"Not hatched: {told}"
    texts = np.array([_number(value) for value in panel.values.ravel()], dtype=object).reshape(panel.shape)
    return replace(panel, texts=texts + np.where(clear, "*", "").astype(object)), f"*: {told}"


def _frequency(table: Stability, values: Float[np.ndarray, "layer head"], title: str) -> GridMap:
    return GridMap(
        values,
        title=title,
        labels=table.labels,
        mask=np.isfinite(values),
        range=(0.0, 1.0),
        kind="probability",
        group=table.kv_group,
        unit="share of runs that select the head",
    )


def _columns(panels: int) -> int:
    """Panels side by side: as many as fill their rows, one more counted where there is room for a mean."""
    if panels <= 4:
        return panels
    return next((count for count in (4, 3, 5, 2) if panels % count in (0, count - 1)), 1)


def _kind_notes(table: SharedHeads) -> tuple[str, ...]:
    found = []
    if table.key_value is not None:
        one = table.key_value
        found.append(
            f"Pairs of core heads behind one key-value head: {one.pairs}, by chance {one.expected:.1f} "
            f"(p = {one.p:.2g})."
        )
    if table.kinds:
        both = table.kinds[0]
        found.append(
            f"Additive and multiplicative gates are open together at {both.both} heads over all runs, by chance at "
            f"{both.expected:.0f} (p = {both.p:.2g})."
        )
    return tuple(found)


def _number(value: float) -> str:
    return "" if np.isnan(value) else re.sub(r"^([+−])0\.", r"\1.", f"{value:+.2f}".replace("-", "−"))
