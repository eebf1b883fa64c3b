"""What was learnt on one task and used on another: each cell's edit, or its heads trained anew, on the others' rows.

Both give a table for :func:`jola_interp.analysis.transfer`: NLL of the target's test rows under the source (``score``),
without an edit (``base``) and under the target's own (``own``), in nats per answer token; a row per pair of cells
(``source_cell``, ``target_cell``). Whatever is known already in ``<study>/transfer/`` is not computed again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jola_interp import _files
from jola_interp.evidence.case import Case, open_case
from jola_interp.evidence.endpoint import Endpoint
from jola_interp.evidence.overlap import random_like
from jola_interp.runs import Run
from jola_interp.study.cell import Cell
from jola_interp.study.place import read_object
from jola_interp.study.reading import Readable
from jola_interp.study.worker import Worker

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "transfer"
RANDOM = "random heads"
"""The source that knows nothing: as many heads in every layer as the target's own."""
Group = Mapping[str, tuple[Cell, Run]]


def carried_edits(study: Readable, rows: int = 50, **axes: Any) -> pd.DataFrame:
    """Each task's edit put on the others' rows as it is.

    Args:
        study: whose finished cells.
        rows: test rows of a target, the first ones.
        **axes: only these cells, as for ``study.runs``.

    Raises:
        ValueError: fewer than two rows, or no two finished cells that differ in nothing but their task.
    """
    if rows < 2:
        raise ValueError(f"rows must be 2 or more, got {rows}")
    worker, found = Worker(study.path, study.design), []
    for group in groups(study, **axes):
        for target, (cell, run) in group.items():
            known = _scored(worker, study.path, cell, run, group, rows)
            for source in group:
                cells = group[source][0].name, cell
                found.append(_row(source, target, cells, known[source], known[""], known[target], rows))
    return _frame(found)


def retrained_heads(
    study: Readable, targets: list[str], steps: int | None = None, random: int = 0, **axes: Any
) -> pd.DataFrame:
    """Each task's selected heads trained anew on the targets, without gates, as many steps for every set of heads.

    ``own`` is a refit of the target's own heads. A source named "random heads" has as many heads in every layer as the
    target's own, ``random`` draws of them.

    Args:
        study: whose finished cells.
        targets: tasks to train on.
        steps: of each refit; None is as many as the target's Run took.
        random: draws of random heads for each target and seed.
        **axes: only these cells, as for ``study.runs``.

    Raises:
        ValueError: a target that no finished cell has, or no two cells that differ in nothing but their task.
        KeyboardInterrupt: a training was interrupted; the same call goes on.
    """
    worker, found = Worker(study.path, study.design), []
    chosen = list(groups(study, **axes))
    if missing := [name for name in targets if not any(name in group for group in chosen)]:
        raise ValueError(f"targets: {', '.join(missing)} is no task of two cells or more that are finished")
    for group in chosen:
        for target in [name for name in targets if name in group]:
            case = _case(worker, study.path, *group[target], steps)
            own = _refit(case, case.selected)
            base = float(case.base.nll.mean())
            cell = group[target][0]
            for source, heads in _sources(group, case, cell, random):
                score = own if source == target else _refit(case, heads)
                cells = group[source][0].name if source in group else "", cell
                found.append(_row(source, target, cells, score, base, own, len(case.task.test)))
    return _frame(found)


def groups(study: Readable, **axes: Any) -> Iterator[Group]:
    """Task to (cell, Run), of finished cells with real labels that differ in nothing but their task.

    Raises:
        ValueError: there are no two such cells.
    """
    found: dict[str, dict[str, tuple[Cell, Run]]] = {}
    for cell, run in study.runs(**{"labels": "real", **axes}).items():
        alike = replace(cell, task="any").name
        found.setdefault(alike, {})[cell.task] = (cell, run)
    several = [group for group in found.values() if len(group) > 1]
    if not several:
        raise ValueError(f"{study.path}: transfer needs two finished cells that differ in nothing but their task")
    yield from several


def _scored(worker: Worker, study: Path, cell: Cell, run: Run, group: Group, rows: int) -> dict[str, float]:
    """Source to mean NLL on a target's rows; "" is the base model."""
    file = study / FOLDER / "edits" / f"{cell.name}.json"
    stored = read_object(file) if file.exists() else {}
    known: dict[str, float] = dict(stored.get("nll", {})) if stored.get("rows") == rows else {}
    names = {task: one.name for task, (one, _) in group.items()}
    missing = [task for task in ("", *group) if names.get(task, "") not in known]
    if missing:
        endpoint = _endpoint(worker, cell, run, rows)
        for task in missing:
            edit = group[task][1].edit.restricted() if task else None
            known[names.get(task, "")] = float(endpoint.losses(edit).nll.mean())
            file.parent.mkdir(parents=True, exist_ok=True)
            _files.write_json(file, {"rows": rows, "nll": known})
    return {task: known[names.get(task, "")] for task in ("", *group)}


def _endpoint(worker: Worker, cell: Cell, run: Run, rows: int) -> Endpoint:
    model, task = worker.model(cell.model, run.edit.on_weights), worker.task(cell)
    case = Case(run, task, model, worker.study, 1)  # for its settings and its backend
    return Endpoint(model, task, task.test[:rows], case.settings, case.backend)


def _case(worker: Worker, study: Path, cell: Cell, run: Run, steps: int | None) -> Case:
    out = study / FOLDER / "heads" / cell.name
    return open_case(run, worker.task(cell), worker.model(cell.model), steps=steps, out=out)


def _refit(case: Case, heads: tuple[tuple[int, int], ...]) -> float:
    return float(case.refit(heads, "heads").nll.mean())


def _sources(group: Group, case: Case, cell: Cell, random: int) -> Iterator[tuple[str, tuple[tuple[int, int], ...]]]:
    """Every task's heads, then random ones, which each target and seed has its own of."""
    for task, (_, run) in group.items():
        yield task, run.selection(case.rule).units
    for draw in range(random):
        yield RANDOM, random_like(case.selected, case.editable, _generator(cell, draw))


def _generator(cell: Cell, draw: int) -> np.random.Generator:
    """Of one draw of random heads for a target: near copies of one draw would be no random sample."""
    return np.random.default_rng([draw, cell.seed, cell.draw or 0, zlib.crc32(cell.task.encode())])


def _row(
    source: str, target: str, cells: tuple[str, Cell], score: float, base: float, own: float, rows: int
) -> dict[str, Any]:
    """``cells``: the source's name, "" where it has none, and the target."""
    name, cell = cells
    about = {"source": source, "target": target, "model": cell.model, "seed": cell.seed, "draw": cell.draw}
    numbers = {"score": score, "base": base, "own": own, "rows": rows}
    return {**about, **numbers, "source_cell": name, "target_cell": cell.name}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
