"""What a study found: its selections and what they are asked, kept in a few small files beside the cells.

``<study>/answers/`` holds the gates of all finished cells (``selections.safetensors``), the cosines of their offsets,
and the tables of transfer. With it and the cells' summaries a study can be read and drawn where its Runs are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jola_interp import selection
from jola_interp._log import logger
from jola_interp.analysis.offset_cosines import OffsetCosines, offset_cosines
from jola_interp.analysis.overlaps import Overlaps, overlaps
from jola_interp.analysis.selections import Origin, Selections, selections
from jola_interp.analysis.shared_heads import SharedHeads, shared_heads
from jola_interp.analysis.stability import Stability, stability
from jola_interp.analysis.tables import read_table, write_table
from jola_interp.analysis.transfer import Transfer, transfer
from jola_interp.runs import Run
from jola_interp.study.cell import Cell
from jola_interp.study.design import FILE, Design
from jola_interp.study.place import CELLS, Place
from jola_interp.study.reading import Readable
from jola_interp.study.transfer import RANDOM

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "answers"
SELECTIONS = "selections.safetensors"
COSINES = "offset_cosines-{}.safetensors"
"""A file for each rule and set of cells that were asked."""
TRANSFER, HEADS = "transfer.csv", "heads.csv"
"""Edits carried to other tasks; heads trained anew on them."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What one kind of cells (one model, method and penalty) was asked.

    Attributes:
        selections: gates and labels of the cells.
        overlaps: between tasks, under the rule of the selections and with as many heads in every cell.
        stability: over seeds.
        shared: core heads, specialists, heads that are never selected; None with one task.
        cosines: of offsets; None where nothing adds, or no two cells share a head.
        transfer: of edits, against the overlap of the tasks' heads; None where it was not measured.
        carried: the same, against the cosines of the tasks' offsets; None without these.
        heads: of heads that were trained anew on other tasks; None likewise.
        random_heads: target to the relative gain of random heads trained there, with as many in every layer.
    """

    selections: Selections
    overlaps: Overlaps
    stability: Stability
    shared: SharedHeads | None
    cosines: OffsetCosines | None
    transfer: Transfer | None
    carried: Transfer | None
    heads: Transfer | None
    random_heads: Mapping[str, float]


def gates_of(study: Readable, rule: str = selection.DEFAULT_RULE) -> Selections:
    """The gates of all finished cells that have gates on heads; from ``answers/`` where their Runs are not here.

    Raises:
        ValueError: no such cell is finished, or its Run is neither here nor in ``answers/``.
    """
    selection.parse_rule(rule)
    if not _has_runs(study):
        file = study.path / FOLDER / SELECTIONS
        if not file.exists():
            raise ValueError(f"{study.path}: no Runs of finished cells are here, and no {FOLDER}/{SELECTIONS}")
        kept = read_table(Selections, file)
        origins = tuple(replace(one, path=one.path and str(study.path / one.path)) for one in kept.origins)
        return replace(kept, rule=rule, origins=origins)
    told: dict[Run | str | Path, dict[str, Any]] = {}
    for cell, run in study.runs().items():
        if not any(site == "heads" for site, _ in run.edit.log_alphas()):
            continue
        told[run] = {**labels_of(cell), "path": str(run.path)}
    if not told:
        raise ValueError(f"{study.path}: no finished cell has gates on heads")
    return selections(told, rule)


def labels_of(cell: Cell) -> dict[str, Any]:
    """What a cell tells of its Run that the Run does not, or not so (see ``Origin``)."""
    options = "".join(f" {name}={value}" for name, value in sorted(cell.options.items()))
    names = {"task": cell.task, "model": cell.model, "method": f"{cell.method}{options}", "labels": cell.labels}
    return {**names, "seed": cell.seed, "draw": cell.draw, "n_train": cell.n_train}


def ask(study: Readable, rule: str = selection.DEFAULT_RULE, **labels: Any) -> Answers:
    """Put the questions to a study, and keep what the answers need in ``answers/``.

    Args:
        study: with finished cells.
        rule: which heads count as selected.
        **labels: which cells, where there are several models, methods or penalties (``model="smollm2-135m"``).

    Raises:
        ValueError: see :func:`gates_of`; an unknown label; or cells of several models, methods or penalties.
    """
    every = gates_of(study, rule)
    if _has_runs(study):
        keep_selections(study, every)
    found = every.select(**labels) if labels else every
    sizes = found.sets().sum((1, 2))
    equal = f"top={max(1, round(float(sizes.mean())))}:p_open"
    shared, cosines = overlaps(found, [rule, equal]), _cosines(study, found)
    alike = shared.groups, shared.matrix("jaccard").excess, "excess Jaccard of the selected heads"
    return Answers(
        selections=found,
        overlaps=shared,
        stability=stability(found),
        shared=shared_heads(found) if len(found.select(labels="real").tasks) > 1 else None,
        cosines=cosines,
        transfer=_transfer(study, TRANSFER, found, *alike),
        carried=None
        if cosines is None
        else _transfer(study, TRANSFER, found, cosines.groups, cosines.value, "cosine of offsets"),
        heads=_transfer(study, HEADS, found, *alike),
        random_heads=_random_heads(study, found),
    )


def keep_selections(study: Readable, found: Selections) -> Path:
    """Write them with the places of their Runs in the study: where that lies is no one else's business."""
    file = study.path / FOLDER / SELECTIONS
    file.parent.mkdir(parents=True, exist_ok=True)
    origins = tuple(replace(one, path=f"{CELLS}/{_cell_of(one)}/run") for one in found.origins)
    write_table(replace(found, origins=origins), file, {})
    return file


def keep_table(study: Readable, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Write a table as CSV, and give it back."""
    file = study.path / FOLDER / name
    file.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(file, index=False)
    return frame


def keep_small(study: Readable, place: Path) -> Path:
    """Copy what a study can be read and drawn from: its description, summaries and answers; no Run.

    The questions are put first, so that what their answers need is there. An earlier copy there is replaced; what else
    lies beside it, such as figures, stays.

    Raises:
        FileExistsError: there is something else than small files of this study.
    """
    target = place.expanduser().resolve()
    _require_small(study, target)
    if _has_runs(study):
        with contextlib.suppress(ValueError):  # no gates, or several models: then what can be asked is kept
            ask(study)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _copy_small(study, scratch)
        target.mkdir(exist_ok=True)
        for name in (CELLS, FOLDER, FILE):
            if (target / name).is_dir():
                shutil.rmtree(target / name)
            if (scratch / name).exists():
                (scratch / name).replace(target / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return place


def _copy_small(study: Readable, fresh: Path) -> None:
    (fresh / CELLS).mkdir()
    shutil.copyfile(study.path / FILE, fresh / FILE)
    for cell in study.cells:
        source = Place.of(study.path, cell).summary
        if source.exists():
            (fresh / CELLS / cell.name).mkdir()
            shutil.copyfile(source, fresh / CELLS / cell.name / source.name)
    if (study.path / FOLDER).is_dir():
        shutil.copytree(study.path / FOLDER, fresh / FOLDER)


def _require_small(study: Readable, target: Path) -> None:
    """Refuse to replace anything but small files of the same study.

    Raises:
        FileExistsError: what is there, and what to do.
    """
    here = study.path.resolve()
    if here.is_relative_to(target) or target.is_relative_to(here):
        raise FileExistsError(f"path: {target} is, holds or lies in the study itself; choose another directory")
    if not target.exists() or target.is_dir() and not any(target.iterdir()):
        return
    if not (target / FILE).is_file():
        raise FileExistsError(f"path: {target} is not empty and holds no study; choose another directory")
    if more := [file for file in sorted((target / CELLS).glob("*/*")) if file.name != "summary.json"]:
        raise FileExistsError(f"path: {more[0]} is no copy's; choose another directory")
    try:
        study.design.require_extends(Design.read(target / FILE), target / FILE)
    except ValueError as error:
        raise FileExistsError(f"path: {target} holds another study; choose another directory ({error})") from error


def _has_runs(study: Readable) -> bool:
    """Whether the Runs of all finished cells are here."""
    finished = [place for cell in study.cells if (place := Place.of(study.path, cell)).summary.exists()]
    return bool(finished) and all((place.run / "config.json").exists() for place in finished)


def _cell_of(origin: Origin) -> str:
    """The name of its cell, ``…/cells/<name>/run``; "" where it does not say."""
    return Path(origin.path).parent.name


def _cosines(study: Readable, found: Selections) -> OffsetCosines | None:
    """Of these cells under this rule: from their Runs, or as they were kept."""
    asked = json.dumps([found.rule, *map(_cell_of, found.origins)])
    file = study.path / FOLDER / COSINES.format(hashlib.sha256(asked.encode()).hexdigest()[:10])
    if not _has_runs(study):
        return read_table(OffsetCosines, file) if file.exists() else None
    try:
        table = offset_cosines(found)
    except ValueError:  # nothing adds, or nothing is shared
        return None
    write_table(table, file, {})
    return table


def _random_heads(study: Readable, found: Selections) -> dict[str, float]:
    """(score − base)/(own − base) of random heads, means over seeds and draws taken above and below."""
    frame = _measured(study, HEADS, found)
    if frame is None:
        return {}
    means = frame[frame["source"] == RANDOM].groupby("target")[["score", "base", "own"]].mean()
    gains = (means["score"] - means["base"]) / (means["own"] - means["base"])
    return {str(target): float(gain) for target, gain in gains.items()}


def _transfer(
    study: Readable, name: str, found: Selections, groups: tuple[str, ...], alike: np.ndarray, what: str
) -> Transfer | None:
    """A kept table, held against how alike the tasks are: [group, group], and what that is."""
    frame = _measured(study, name, found)
    if frame is None or not len(known := frame[frame["source"] != RANDOM]):
        return None
    return transfer(known, alike, groups, overlap_name=what)


def _measured(study: Readable, name: str, found: Selections) -> pd.DataFrame | None:
    """The rows of a kept table in which both cells are among those asked; random heads have no source."""
    import pandas as pd

    file = study.path / FOLDER / name
    if not file.exists():
        return None
    frame = pd.read_csv(file)
    if not {"source_cell", "target_cell"} <= set(frame):
        logger.warning("%s does not say of which cells it is: measure transfer again, what is known is kept", file)
        return None
    asked = {_cell_of(one) for one in found.origins}
    sources = frame["source_cell"].isin(asked) | (frame["source"] == RANDOM)
    return frame[sources & frame["target_cell"].isin(asked)]
