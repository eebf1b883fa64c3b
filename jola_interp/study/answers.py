"""What a study found: its selections and what they are asked, kept in a few small files beside the cells.

``<study>/answers/`` holds the gates of all finished cells (``selections.safetensors``), the cosines of their offsets,
and the tables of transfer. With it and the cells' summaries a study can be read and drawn where its Runs are not.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jola_interp import selection
from jola_interp.analysis.offset_cosines import OffsetCosines, offset_cosines
from jola_interp.analysis.overlaps import Overlaps, overlaps
from jola_interp.analysis.selections import Selections, selections
from jola_interp.analysis.shared_heads import SharedHeads, shared_heads
from jola_interp.analysis.stability import Stability, stability
from jola_interp.analysis.tables import read_table, write_table
from jola_interp.analysis.transfer import Transfer, transfer
from jola_interp.runs import Run
from jola_interp.study.design import FILE
from jola_interp.study.place import CELLS, Place
from jola_interp.study.reading import Readable
from jola_interp.study.transfer import RANDOM

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "answers"
SELECTIONS, COSINES = "selections.safetensors", "offset_cosines.safetensors"
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
        transfer: of edits; None where it was not measured.
        heads: of heads that were trained anew on other tasks; None likewise.
        random_heads: target to the relative gain of random heads trained there, with as many in every layer.
    """

    selections: Selections
    overlaps: Overlaps
    stability: Stability
    shared: SharedHeads | None
    cosines: OffsetCosines | None
    transfer: Transfer | None
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
        return replace(read_table(Selections, file), rule=rule)
    told: dict[Run | str | Path, dict[str, Any]] = {}
    for cell, run in study.runs().items():
        if not any(site == "heads" for site, _ in run.edit.log_alphas()):
            continue
        options = "".join(f" {name}={value}" for name, value in sorted(cell.options.items()))
        names = {"task": cell.task, "model": cell.model, "method": f"{cell.method}{options}", "path": str(run.path)}
        numbers = {"seed": cell.seed, "draw": cell.draw, "labels": cell.labels, "n_train": cell.n_train}
        told[run] = names | {name: value for name, value in numbers.items() if value is not None}
    if not told:
        raise ValueError(f"{study.path}: no finished cell has gates on heads")
    return selections(told, rule)


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
    shared = overlaps(found, [rule, equal])
    return Answers(
        selections=found,
        overlaps=shared,
        stability=stability(found),
        shared=shared_heads(found) if len(found.select(labels="real").tasks) > 1 else None,
        cosines=_cosines(study, found),
        transfer=_transfer(study, TRANSFER, shared),
        heads=_transfer(study, HEADS, shared),
        random_heads=_random_heads(study),
    )


def keep_selections(study: Readable, found: Selections) -> Path:
    """Write them without the places of their Runs, which are no one else's."""
    file = study.path / FOLDER / SELECTIONS
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(replace(found, origins=tuple(replace(one, path="") for one in found.origins)), file, {})
    return file


def keep_table(study: Readable, name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Write a table as CSV, and give it back."""
    file = study.path / FOLDER / name
    file.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(file, index=False)
    return frame


def keep_small(study: Readable, place: Path) -> Path:
    """Copy what a study can be read and drawn from: its description, summaries and answers; no Run.

    Raises:
        FileExistsError: there is something else than a study's small files.
    """
    if place.exists() and not (place / FILE).exists() and any(place.iterdir()):
        raise FileExistsError(f"path: {place} is not empty and holds no study; choose another directory")
    fresh = place.with_name(f".{place.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / CELLS).mkdir(parents=True)
    shutil.copyfile(study.path / FILE, fresh / FILE)
    for cell in study.cells:
        source = Place.of(study.path, cell).summary
        if source.exists():
            (fresh / CELLS / cell.name).mkdir()
            shutil.copyfile(source, fresh / CELLS / cell.name / source.name)
    if (study.path / FOLDER).is_dir():
        shutil.copytree(study.path / FOLDER, fresh / FOLDER)
    shutil.rmtree(place, ignore_errors=True)
    fresh.rename(place)
    return place


def _has_runs(study: Readable) -> bool:
    """Whether the Runs of all finished cells are here."""
    finished = [place for cell in study.cells if (place := Place.of(study.path, cell)).summary.exists()]
    return bool(finished) and all((place.run / "config.json").exists() for place in finished)


def _cosines(study: Readable, found: Selections) -> OffsetCosines | None:
    file = study.path / FOLDER / COSINES
    if not all(origin.path for origin in found.origins):
        return read_table(OffsetCosines, file) if file.exists() else None
    try:
        table = offset_cosines(found)
    except ValueError:  # nothing adds, or nothing is shared
        return None
    write_table(table, file, {})
    return table


def _random_heads(study: Readable) -> dict[str, float]:
    """(score − base)/(own − base) of random heads, means over seeds and draws taken above and below."""
    import pandas as pd

    file = study.path / FOLDER / HEADS
    if not file.exists():
        return {}
    frame = pd.read_csv(file)
    means = frame[frame["source"] == RANDOM].groupby("target")[["score", "base", "own"]].mean()
    gains = (means["score"] - means["base"]) / (means["own"] - means["base"])
    return {str(target): float(gain) for target, gain in gains.items()}


def _transfer(study: Readable, name: str, shared: Overlaps) -> Transfer | None:
    """A kept table, held against the overlap of the tasks' heads."""
    import pandas as pd

    file = study.path / FOLDER / name
    if not file.exists():
        return None
    frame = pd.read_csv(file)
    known = frame["source"].isin(shared.groups) & frame["target"].isin(shared.groups)
    matrix = shared.matrix("jaccard")
    return transfer(frame[known], matrix.excess, shared.groups, overlap_name="excess Jaccard of the selected heads")
