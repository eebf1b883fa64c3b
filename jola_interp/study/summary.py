"""What a table says of a finished cell, kept in a small file, so that thousands are listed without their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jola_interp.edits.base import unit_label
from jola_interp.study.cell import Cell

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.runs import Run

FORMAT = 1
AXES = ("model", "task", "method", "options", "seed", "draw", "n_train", "n_validation", "n_test", "labels", "preset")
"""Columns that say which cell it is; training fields that some cell names stand after them."""
MEASURED = (
    "metric", "value", "low", "high", "nll", "base_value", "base_nll", "open_additive", "open_multiplicative", "heads",
    "selected", "polarised", "parameters", "steps", "best_epoch", "stopped",
)  # fmt: skip
"""Columns that say what came of it."""


def summarise(cell: Cell, run: Run, seconds: float) -> dict[str, Any]:
    """``summary.json``: the cell, the training fields in force, what came of it, and how long it took.

    ``value``, ``low`` and ``high`` are the edited model's score by ``metric`` with its interval, ``nll`` nats per
    answer token; ``heads`` are those that the default rule selects (``selected`` their labels, best first),
    ``polarised`` the share of gates that decided. An edit without gates has the heads at which it acts, their labels
    where these are not all. What does not apply is None.
    """
    found = {**_scores(run), **_gates(run)}
    stamp = run.convergence
    found["polarised"] = None if stamp is None else stamp.decided_share
    found["parameters"] = run.edit.n_parameters()
    found |= {name: run.config["progress"][name] for name in ("steps", "best_epoch", "stopped")}
    return {
        "format": FORMAT,
        "cell": cell.to_dict(),
        "train": run.config["train"],
        "measured": found,
        "seconds": round(seconds, 3),
    }


def table(cells: Sequence[Cell], summaries: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row a finished cell, in the study's order: its name and axes, what came of it, its Run's place in the study.

    Nothing in it depends on when, where or how fast a cell was run.

    Args:
        cells: of the study.
        summaries: name of a cell to its summary.
    """
    import pandas as pd

    fields = sorted({name for cell in cells for name in cell.train})
    rows = [_row(cell, summaries[cell.name], fields) for cell in cells if cell.name in summaries]
    return pd.DataFrame(rows, columns=["cell", *AXES, *fields, *MEASURED, "path"])


def _row(cell: Cell, summary: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    axes = {name: getattr(cell, name) for name in AXES}
    axes["options"] = ", ".join(f"{name}={value}" for name, value in cell.options.items())
    train = {name: _plain(summary["train"].get(name)) for name in fields}
    measured = {name: summary["measured"].get(name) for name in MEASURED}
    return {"cell": cell.name, **axes, **train, **measured, "path": f"cells/{cell.name}/run"}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _scores(run: Run) -> dict[str, Any]:
    scores = run.scores
    if not scores:
        return {}
    metric, edited, base = scores["metric"], scores["edited"], scores["base"]
    found = {name: edited[metric][name] for name in ("value", "low", "high")} if metric in edited else {}
    found |= {"metric": metric, "base_value": base.get(metric, {}).get("value")}
    return found | {"nll": edited.get("nll", {}).get("value"), "base_nll": base.get("nll", {}).get("value")}


def _gates(run: Run) -> dict[str, Any]:
    """Open gates by kind and the heads that they select; of an edit without gates, the heads at which it acts."""
    if any(site == "heads" for site, _ in run.edit.log_alphas()):
        found = run.selection()
        counts = found.counts()
        opened = {f"open_{kind}": counts[kind] + counts["both"] for kind in ("additive", "multiplicative")}
        return {**opened, "heads": len(found), "selected": " ".join(found.labels)}
    mask = run.edit.masks().get("heads")
    if mask is None:
        return {}
    labels = [unit_label("heads", *unit) for unit in mask.nonzero().tolist()]
    return {"heads": len(labels), "selected": None if bool(mask.all()) else " ".join(labels)}
