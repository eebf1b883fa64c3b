"""Gates as layer × head maps: P(open) of each kind, how each head is used, both over training and between Runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jola_interp import selection
from jola_interp.analysis.grids import GridMap, Sheet, reach
from jola_interp.analysis.summary import gate_summary, gates_at, kept_label, title_of, undecided
from jola_interp.edits.base import Site, unit_label
from jola_interp.evidence.overlap import overlap

if TYPE_CHECKING:
    from jola_interp.runs import Run

SNAPSHOTS = 5
"""How many steps :func:`snapshots` shows by default, the first and the last among them."""
_SYMBOLS = {"additive": "‖g_a a‖", "multiplicative": "‖g_m m‖"}
_SELECTED = ("neither", "A alone", "B alone", "both Runs")
_X_LABELS = {"heads": "head", "mlp": "MLP", "attention": "attention"}


def gate_maps(run: Run, step: int | None = None, site: Site = "heads") -> dict[str, GridMap]:
    """P(open) of every gate: kind to map.

    Args:
        run: whose gates.
        step: the state after this optimiser step (the last record not after it); None is the kept edit, whose
            :func:`norms` are then among the hover columns.
        site: ``heads`` or ``mlp``.

    Raises:
        ValueError: an edit without gates at ``site``, or a step that was not recorded.
    """
    kept = gates_at(run, site)
    if step is None:
        return {kind: _map(run, value, site, kind, norms(run, site)) for kind, value in kept.items()}
    row = _rows_of(run, [step])[0]
    then = run.gates.at(int(run.gates.steps[row]), site)
    return {kind: _map(run, value, site, f"{kind}, step {run.gates.steps[row]}", {}) for kind, value in then.items()}


def status_map(
    run: Run, rule: str = selection.DEFAULT_RULE, site: Site = "heads", vectors: bool = True
) -> GridMap:  # fmt: skip
    """How the kept edit uses each head under ``rule``: none, additive, multiplicative or both.

    A head is marked where a gate of it has not decided: its status may not be the last word.

    Args:
        run: whose gates.
        rule: when a gate counts as open (see :mod:`jola_interp.selection`).
        site: ``heads``, ``mlp`` or ``attention``.
        vectors: whether :func:`norms` are among the hover columns, beside P(open).

    Raises:
        ValueError: a rule outside the grammar, or an edit without gates at ``site``.
    """
    log_alphas = gates_at(run, site)
    mask = _mask(run, site)
    opens = {f"P(open) {kind}": selection.measure("p_open", value) for kind, value in log_alphas.items()}
    return GridMap(
        values=np.where(mask, selection.status(log_alphas, rule), np.nan).astype(np.float32),
        title="status",
        labels=_labels(run, site),
        mask=mask,
        range=reach("status"),
        kind="status",
        x_label=_X_LABELS[site],
        marked=np.any([undecided(value) for value in log_alphas.values()], axis=0),
        hover=opens | (norms(run, site) if vectors else {}),
        group=_group(run, site),
        categories=_categories(list(log_alphas)),
    )


def head_maps(run: Run, rule: str = selection.DEFAULT_RULE, site: Site = "heads") -> Sheet:
    """The maps of all kinds of gates and the map of statuses, side by side, of the kept edit.

    Raises:
        ValueError: a rule outside the grammar, or an edit without gates at ``site``.
    """
    summary = gate_summary(run, rule, site)
    panels = (*gate_maps(run, site=site).values(), status_map(run, rule, site))
    stamp = run.convergence
    notes = summary.sentences() if stamp is None or stamp.converged else (*summary.sentences(), stamp.sentence())
    return Sheet((panels,), f"{title_of(run)}: gates kept ({kept_label(run)})", notes, margin=True)


def snapshots(run: Run, steps: Iterable[int] | None = None, site: Site = "heads") -> Sheet:
    """P(open) at a few steps of training: a row per kind of gate, a column per step (JoLA, Fig. 7).

    Args:
        run: whose history.
        steps: optimiser steps, each shown at the last record not after it; None is five, evenly spaced.
        site: ``heads`` or ``mlp``.

    Raises:
        ValueError: an edit without gates at ``site``, or a step before the first or after the last record.
    """
    kinds = list(gates_at(run, site))
    rows = _spaced(len(run.gates)) if steps is None else _rows_of(run, steps)
    shown = [int(run.gates.steps[row]) for row in rows]
    grids = [
        tuple(
            _map(run, run.gates.at(step, site)[kind], site, f"{kind}, step {step}", {}, hatch=False) for step in shown
        )
        for kind in kinds
    ]
    return Sheet(
        rows=tuple(grids),
        title=f"{title_of(run)}: gates over training",
        notes=(f"The Run keeps {kept_label(run)}.",),
        headings=tuple(f"step {step}" for step in shown),
        names=tuple(kinds),
    )


def compare_heads(run_a: Run, run_b: Run, rule: str = selection.DEFAULT_RULE, site: Site = "heads") -> Sheet:
    """P(open) and statuses of two Runs below each other, and below those what differs: P(open) of B − A.

    The last map shows which Run selects each head, and the notes how far the sets overlap: |A ∩ B| / |A ∪ B|, beside
    its mean over random sets with as many heads in every layer. Heads that only one Run may edit are left out of that.

    Args:
        run_a, run_b: Runs of one head shape.
        rule: when a gate counts as open (see :mod:`jola_interp.selection`).
        site: ``heads``, ``mlp`` or ``attention``.

    Raises:
        ValueError: different head shapes, no kind of gate that both have, a rule outside the grammar, or an edit
            without gates at ``site``.
    """
    shapes = [run.edit.shape for run in (run_a, run_b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"run_b must have the head shape of run_a, {shapes[0]}; got {shapes[1]}")
    a, b = gate_maps(run_a, site=site), gate_maps(run_b, site=site)
    kinds = [kind for kind in a if kind in b]
    if not kinds:
        raise ValueError(f"run_b must have a kind of gate that run_a has ({', '.join(a)}); got {', '.join(b)}")
    rows = [
        (*(replace(maps[kind], hover={}, marked=None) for kind in kinds), status_map(run, rule, site, vectors=False))
        for run, maps in ((run_a, a), (run_b, b))
    ]
    differences = [_difference(a[kind], b[kind]) for kind in kinds]
    return Sheet(
        rows=(*rows, (*differences, _selected(run_a, run_b, rule, site))),
        title=_compared(run_a, run_b),
        notes=(*_who(run_a, run_b), *_overlap(run_a, run_b, rule, site), *_left_out(a, b)),
        names=("A", "B", "B − A"),
        margin=True,
    )


def norms(run: Run, site: Site = "heads") -> dict[str, Float[np.ndarray, "layer unit"]]:
    """‖g_a a‖ and ‖g_m m‖ of the kept edit at inference, NaN where a unit is not editable.

    ‖a‖ and ‖m‖ alone are not shown: only the products act, so a gate and its vector can trade a factor.
    """
    mask = _mask(run, site)
    return {
        _SYMBOLS[name]: np.where(mask, vector.cpu().norm(dim=-1).numpy(), np.nan).astype(np.float32)
        for name, vector in run.edit.at_inference(site).items()
    }


def _difference(a: GridMap, b: GridMap) -> GridMap:
    """P(open) of B − A, from −1 to 1."""
    return GridMap(
        values=b.values - a.values,
        title=a.title,
        labels=a.labels,
        mask=a.mask & b.mask,
        range=(-1.0, 1.0),
        kind="signed",
        x_label=a.x_label,
        hover={"P(open) A": a.values, "P(open) B": b.values},
        group=a.group,
        unit="P(open) of B − A",
    )


def _selected(run_a: Run, run_b: Run, rule: str, site: Site) -> GridMap:
    """Which of two Runs selects each head that both may edit."""
    a, b = (selection.status(gates_at(run, site), rule) > 0 for run in (run_a, run_b))
    editable = _mask(run_a, site) & _mask(run_b, site)
    return GridMap(
        values=np.where(editable, a + 2.0 * b, np.nan).astype(np.float32),
        title="selected by",
        labels=_labels(run_a, site),
        mask=editable,
        range=reach("status"),
        kind="status",
        x_label=_X_LABELS[site],
        group=_group(run_a, site),
        categories=tuple(range(len(_SELECTED))),
        words=_SELECTED,
    )


def _compared(run_a: Run, run_b: Run) -> str:
    """Whose gates: one name where both Runs have it."""
    a, b = title_of(run_a), title_of(run_b)
    return f"{a}: gates of two Runs" if a == b else f"Gates of A, {a}, and B, {b}"


def _who(run_a: Run, run_b: Run) -> tuple[str, ...]:
    """Which Run is which, and what it keeps; gates that have not decided and models that differ are said so."""
    found = []
    for name, run in (("A", run_a), ("B", run_b)):
        stamp = run.convergence
        found.append(f"{name}: {run.path.name}, {kept_label(run)}.")
        if stamp is not None and not stamp.converged:
            found.append(f"{name}: {stamp.sentence()}")
    if run_a.config["model"]["fingerprint"] != run_b.config["model"]["fingerprint"]:
        found.append("A and B edit models of other weights: heads of one name need not be alike.")
    return tuple(found)


def _overlap(run_a: Run, run_b: Run, rule: str, site: Site) -> tuple[str, ...]:
    """How far the selected sets overlap, beside chance."""
    editable = _mask(run_a, site) & _mask(run_b, site)
    a, b = ([unit for unit in run.selection(rule, site).units if editable[unit]] for run in (run_a, run_b))
    shared_only = "" if np.array_equal(_mask(run_a, site), _mask(run_b, site)) else " that both may edit"
    noun = {"heads": "heads", "mlp": "MLPs", "attention": "attention outputs"}[site]
    among = f"{rule} selects {len(a):,} (A) and {len(b):,} (B) of {int(editable.sum()):,} {noun}{shared_only}"
    if not a or not b:
        return (f"{among}: there is no overlap to measure.",)
    found = overlap(a, b, editable)
    shared = f"{among}, {found.shared:,} of them in both: Jaccard {found.jaccard:.2f}"
    if editable.shape[1] == 1:
        return (f"{shared}.",)  # with one unit a layer, a set with as many in every layer is the same set
    return (f"{shared}; random sets with as many heads in every layer: {found.chance:.2f} (p = {found.p:.2g}).",)


def _left_out(a: dict[str, GridMap], b: dict[str, GridMap]) -> tuple[str, ...]:
    """Kinds of gates that only one Run has."""
    alone = [f"{kind} ({name})" for name, one, other in (("A", a, b), ("B", b, a)) for kind in one if kind not in other]
    return (f"Not shown, for the other Run has no such gates: {', '.join(alone)}.",) if alone else ()


def _map(
    run: Run,
    log_alpha: Float[np.ndarray, "layer unit"],
    site: Site,
    title: str,
    hover: dict[str, Float[np.ndarray, "layer unit"]],
    hatch: bool = True,
) -> GridMap:
    return GridMap(
        values=selection.measure("p_open", log_alpha),
        title=title,
        labels=_labels(run, site),
        mask=_mask(run, site),
        range=(0.0, 1.0),
        kind="probability",
        x_label=_X_LABELS[site],
        marked=undecided(log_alpha) if hatch else None,
        hover=hover,
        group=_group(run, site),
    )


def _rows_of(run: Run, steps: Iterable[int]) -> list[int]:
    """Indices of the records at, or last before, ``steps``; each once, in order."""
    recorded, wanted = run.gates.steps, sorted(set(steps))
    if not len(recorded):
        raise ValueError("steps: this Run has no record of its gates")
    if outside := [step for step in wanted if not recorded[0] <= step <= recorded[-1]]:
        raise ValueError(f"steps: {outside} were not recorded; records run from {recorded[0]} to {recorded[-1]}")
    if not wanted:
        raise ValueError("steps must name at least one step, or be None")
    return sorted({int(np.searchsorted(recorded, step, side="right")) - 1 for step in wanted})


def _spaced(records: int) -> list[int]:
    if not records:
        raise ValueError("steps: this Run has no record of its gates")
    return sorted({round(place) for place in np.linspace(0, records - 1, SNAPSHOTS)})


def _labels(run: Run, site: Site) -> np.ndarray:
    layers, units, _ = run.edit.shape.units(site)
    return np.array([[unit_label(site, i, j) for j in range(units)] for i in range(layers)], dtype=object)


def _mask(run: Run, site: Site) -> np.ndarray:
    mask: np.ndarray = run.edit.site(site).mask.cpu().numpy()
    return mask


def _group(run: Run, site: Site) -> int:
    """Query heads per key-value head, where heads share one."""
    return run.edit.shape.group if site == "heads" else 0


def _categories(kinds: list[str]) -> tuple[int, ...]:
    """The status codes that gates of these kinds can give."""
    if kinds == ["shared"]:
        return (0, 3)
    codes = {0} | {selection.STATUSES.index(kind) for kind in kinds}
    return tuple(sorted(codes | ({3} if len(kinds) == 2 else set())))
