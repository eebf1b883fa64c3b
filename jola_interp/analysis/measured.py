"""Measure what figures need, once: tables that cost passes of the model, kept beside their Run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jola_interp._log import logger
from jola_interp.analysis.effects import Effects, add_one_in, even_without_restarts, leave_one_out
from jola_interp.analysis.ranking import KeepCurves, keep_curves
from jola_interp.analysis.readout import Readout, readout
from jola_interp.analysis.rows import precise, same_task
from jola_interp.analysis.shifts import Shifts, shifts
from jola_interp.analysis.tables import about, about_table, load_table, save_table
from jola_interp.analysis.tokens import Tokens, tokens
from jola_interp.analysis.usage import Usage, usage

if TYPE_CHECKING:
    from jola_interp.models import Model
    from jola_interp.runs import Run
    from jola_interp.tasks import Task


@dataclass(frozen=True)
class Measurement:
    """One table.

    Attributes:
        name: of its file, and of the part.
        question: what it answers.
        kind: its class.
        compute: how to make it: a function of a Run, a task, a model and ``rows``.
        rows: test rows that it reads unless told otherwise.
        precise: in float32, since what is measured may be smaller than what bfloat16 rounds away.
        options: what else ``compute`` is given.
    """

    name: str
    question: str
    kind: type[Any]
    compute: Callable[..., Any]
    rows: int
    precise: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("shifts", "How far do activations move?", Shifts, shifts, 64),
    Measurement("usage", "Does a head add or multiply, and how much?", Usage, usage, 32),
    Measurement("text-tokens", "At which tokens?", Tokens, tokens, 4),
    Measurement("readout", "What do offsets write?", Readout, readout, 16, precise=True),
    Measurement(
        "effects",
        "What is lost without one gate?",
        Effects,
        leave_one_out,
        64,
        precise=True,
        options={"estimate": True},
    ),
    Measurement("alone", "What does one gate gain alone?", Effects, add_one_in, 64, precise=True),
    Measurement("keep", "How many heads keep the gain?", KeepCurves, keep_curves, 32),
)
"""All tables, from cheap to dear."""
PARTS = tuple(found.name for found in MEASUREMENTS)


def analyse(
    run: Run,
    task: str | Path | Task | None = None,
    model: str | Path | Model | None = None,
    parts: str | Iterable[str] = "all",
    *,
    rows: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure what the figures of a Run need, and keep it in ``<run>/analysis/``.

    A table that is there for this edit, its inference gate and scope, these rows (or more of them), this model, the
    same options and this version of the package is read, not measured again. Under "all" a part that does not apply to
    the edit is left out, and the log says why.

    Args:
        run: whose.
        task: the Run's own, with the rows that it was trained on; None loads it by its name. For another task call the
            measurement itself, such as ``analysis.shifts(run, other)``.
        model: None is the Run's own.
        parts: "all", or names out of ``PARTS``.
        rows: test rows for every part; None is each part's own number.
        overwrite: measure anew all the same.

    Returns:
        Name of a part to its table.

    Raises:
        ValueError: an unknown part, a number of rows below 1, another task or other rows than the Run's, or what a
            part that was asked for by name refuses.
    """
    wanted = set(PARTS) if parts == "all" else {parts} if isinstance(parts, str) else set(parts)
    if unknown := sorted(wanted - set(PARTS)):
        raise ValueError(f"parts must be 'all' or names out of {', '.join(PARTS)}; got {', '.join(unknown)}")
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ValueError(f"rows must be an integer ≥ 1, or None; got {rows!r}")
    data, target = same_task(run, task), run.ready(model, "analyse")
    found = {}
    for part in MEASUREMENTS:
        if part.name not in wanted:
            continue
        try:
            found[part.name] = _measured(run, data, target, part, rows or part.rows, overwrite)
        except ValueError as error:
            if parts != "all":
                raise
            logger.warning("analyse: %s does not apply: %s", part.name, error)
    return found


def _measured(run: Run, task: Task, model: Model, part: Measurement, rows: int, overwrite: bool) -> Any:
    dtype = {"dtype": "float32"} if part.precise and model.source is not None else {}
    measured_on = about(run, task, model, part.compute, **{**part.options, "rows": rows}) | dtype
    kept = about_table(run, part.name)
    differing = sorted(key for key in {**kept, **measured_on} if kept.get(key) != measured_on.get(key))
    if kept and not overwrite and set(differing) <= {"rows"} and kept.get("rows", 0) >= rows:  # a dear table stays
        return load_table(run, part.name, part.kind)
    logger.info("analyse: %s %s", part.name, part.question)
    if kept:
        logger.info("analyse: the kept table %s has another %s", part.name, ", ".join(differing) or "state")
    target = precise(model) if part.precise else model
    table = even_without_restarts(part.compute, run, task, target, rows=rows, **part.options)
    save_table(run, part.name, table, measured_on)
    return table
