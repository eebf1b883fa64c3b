"""Gates as layer × head maps: P(open) of each kind, how each head is used, and both over training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jola_interp import selection
from jola_interp.analysis.grids import GridMap, Sheet
from jola_interp.analysis.summary import gate_summary, gates_at, kept_label, title_of, undecided
from jola_interp.edits.base import Site, unit_label

if TYPE_CHECKING:
    from jola_interp.runs import Run

SNAPSHOTS = 5
"""How many steps :func:`snapshots` shows by default, the first and the last among them."""
_SYMBOLS = {"additive": "‖a‖", "multiplicative": "‖m‖"}


def gate_maps(run: Run, step: int | None = None, site: Site = "heads") -> dict[str, GridMap]:
    """P(open) of every gate: kind to map.

    Args:
        run: whose gates.
        step: the state after this optimiser step (the last record not after it); None is the kept edit, whose vectors'
            norms are then among the hover columns.
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


def status_map(run: Run, rule: str = selection.DEFAULT_RULE, site: Site = "heads") -> GridMap:
    """How the kept edit uses each head under ``rule``: none, additive, multiplicative or both.

    A head is marked where a gate of it has not decided: its status may not be the last word.

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
        range=(0.0, float(len(selection.STATUSES) - 1)),
        kind="status",
        x_label=_x_label(site),
        marked=np.any([undecided(value) for value in log_alphas.values()], axis=0),
        hover=opens | norms(run, site),
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
    return Sheet((panels,), f"{title_of(run)}: gates kept ({kept_label(run)})", notes)


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


def norms(run: Run, site: Site = "heads") -> dict[str, Float[np.ndarray, "layer unit"]]:
    """‖a‖ and ‖m‖ of the kept edit, NaN where a unit is not editable."""
    mask = _mask(run, site)
    return {
        _SYMBOLS[name]: np.where(mask, vector.detach().cpu().norm(dim=-1).numpy(), np.nan).astype(np.float32)
        for name, vector in run.edit.site(site).vectors.items()
    }


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
        x_label=_x_label(site),
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


def _x_label(site: Site) -> str:
    return "head" if site == "heads" else "MLP"


def _group(run: Run, site: Site) -> int:
    """Query heads per key-value head, where heads share one."""
    shape = run.edit.shape
    return shape.heads // shape.kv_heads if site == "heads" and shape.kv_heads < shape.heads else 0


def _categories(kinds: list[str]) -> tuple[int, ...]:
    """The status codes that gates of these kinds can give."""
    if kinds == ["shared"]:
        return (0, 3)
    codes = {0} | {selection.STATUSES.index(kind) for kind in kinds}
    return tuple(sorted(codes | ({3} if len(kinds) == 2 else set())))
