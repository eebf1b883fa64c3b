"""The report of a study: what was trained, and whether heads are shared, stable, and worth anything elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from jola_interp import plots
from jola_interp.analysis.stability import LARGEST, SELECTED
from jola_interp.analysis.study_curves import curves
from jola_interp.report.page import figure, listed, section, table
from jola_interp.study.answers import labels_of
from jola_interp.study.cell import training_fields
from jola_interp.study.place import Place
from jola_interp.study.summary import AXES as FIELDS

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.analysis import SharedHeads, Stability
    from jola_interp.study.answers import Answers
    from jola_interp.study.study import Study

HEADS = 12
"""Heads that are named."""
AXES = ("n_train", "penalty")
"""Axes over which curves are drawn, where cells have several values of them."""
RANDOM = ("seed", "draw")
"""Axes over which means are taken."""
PLAIN = ("model", "task", "method", "labels", "preset")
"""Axes whose values say themselves what they are."""
LOWER, COUNT = "nll", "heads"


def title_of_study(study: Study) -> tuple[str, str]:
    """Title and subtitle."""
    tasks, models = (list(dict.fromkeys(getattr(cell, name) for cell in study.cells)) for name in ("task", "model"))
    status = study.status()
    counted = ", ".join(f"{number} {state}" for state, number in status.counts.items() if number)
    named = f"{study.path.name}: {', '.join(models)} on {len(tasks)} task{'s' * (len(tasks) > 1)}"
    return named, f"{len(study)} cells: {counted}"


def body_of_study(study: Study, rule: str, **labels: Any) -> str:
    """Answers in words, then every question with its figures."""
    found, frame = study.ask(rule, **labels), study.frame()
    parts = [listed(map(escape, in_words(found))), section("Cells", _cells(rows_of(study, frame, labels)))]
    along = rows_of(study, frame, {name: value for name, value in labels.items() if name not in AXES})
    for name, heading, drawn, see in figures_of(found, along, labels):
        parts.append(figure(name, heading, drawn, see=see))
    parts.append(section("Settings", f"<pre>{escape(study.design.to_yaml())}</pre>"))
    again = [
        "jola-interp study new DIRECTORY --from study.yaml",
        "jola-interp study run DIRECTORY",
        f"jola-interp study report DIRECTORY --rule '{rule}'",
    ]
    return "\n".join([*parts, section("Train it again", f"<pre>{escape(chr(10).join(again))}</pre>")])


def in_words(found: Answers) -> list[str]:
    """A sentence for each question that was answered."""
    said = [found.overlaps.matrix("jaccard", rule).sentence() for rule in found.overlaps.rules if "P(open)" not in rule]
    said += _stable(found.stability)
    said += [] if found.shared is None else _shared(found.shared)
    said += [] if found.cosines is None else [found.cosines.sentence()]
    for what, one in (
        ("Edits carried over", found.transfer),
        ("Edits carried over", found.carried),
        ("Heads trained anew", found.heads),
    ):
        if one is not None and one.mantel is not None:
            said.append(f"{what}, against {one.overlap_name}: {one.mantel.sentence()}")
    if found.random_heads:
        shares = "; ".join(f"{task} {gain:.2f}" for task, gain in found.random_heads.items())
        said.append(
            f"Random heads trained anew, as a share of what the task's own heads gain when trained anew: {shares}."
        )
    return said


def rows_of(study: Study, frame: pd.DataFrame, labels: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of the cells that have these labels, as ``Study.ask`` takes them; cells without gates have them, too."""
    allowed, kept = _allowed(labels), []
    for cell in study.cells:
        place = str(Place.of(study.path, cell).run)
        told = {**labels_of(cell), "penalty": cell.value("penalty"), "path": place}
        if all(told[name] in wanted for name, wanted in allowed.items()):
            kept.append(cell.name)
    return frame[frame["cell"].isin(kept)]


def _allowed(labels: Mapping[str, Any]) -> dict[str, list[Any]]:
    several = (list, tuple, set, frozenset)
    return {name: list(wanted) if isinstance(wanted, several) else [wanted] for name, wanted in labels.items()}


def figures_of(
    found: Answers, frame: pd.DataFrame, labels: Mapping[str, Any] | None = None, **how: Any
) -> Iterator[tuple[str, str, Any, str]]:
    """(name, heading, figure, what to see) of everything that can be drawn.

    Args:
        found: answers of a study.
        frame: the study's, or the rows of it that curves are drawn of.
        labels: which cells were asked about: a curve has only those, and along its axis those with other values of it.
        **how: goes to the renderer.
    """
    yield (
        "overlaps", "Do tasks share heads?", plots.overlap_matrix(found.overlaps, **how),
        "overlap above chance; the diagonal is other seeds of the same task, which is what two tasks have to beat",
    )  # fmt: skip
    yield (
        "overlap-rules",
        "Under every rule",
        plots.overlap_summary(found.overlaps, **how),
        "whether other rules give other answers",
    )
    yield (
        "stability", "Would another seed pick them again?", plots.stability_bars(found.stability, **how),
        "0 is random heads of the same layers, 1 the same heads every time",
    )  # fmt: skip
    frequency = plots.selection_frequency(found.stability, **how)
    yield "frequency", "How often is each head selected?", frequency, "share of the runs of a task"
    if found.shared is not None:
        shared = plots.shared_map(found.shared, **how)
        yield "shared", "Core heads and specialists", shared, "beside how many of each there would be by chance"
    if found.cosines is not None:
        yield "cosines", "Do offsets agree?", plots.offset_matrix(found.cosines, **how), "at heads open in both"
        agreement = plots.offset_agreement(found.cosines, **how)
        yield "cosine-summary", "Offsets of seeds and of tasks", agreement, "beside offsets of other heads"
    yield from _transfers(found, **how)
    yield from _curves(frame, labels or {}, **how)


def _transfers(found: Answers, **how: Any) -> Iterator[tuple[str, str, Any, str]]:
    for name, what, one in (("transfer", "edit", found.transfer), ("heads", "heads, trained anew,", found.heads)):
        if one is None:
            continue
        heading = f"A task's {what} on another".replace(",  on", ", on")
        yield name, heading, plots.transfer_matrix(one, **how), "1 is as good as the target's own, 0 is nothing"
        if one.mantel is not None:
            against = plots.transfer_against_overlap(one, **how)
            yield f"{name}-overlap", f"{heading}: against overlap", against, "does sharing heads say what carries over?"
    if found.carried is not None and found.carried.mantel is not None:
        against = plots.transfer_against_overlap(found.carried, **how)
        yield "transfer-offsets", "A task's edit on another: against its offsets", against, "and does their direction?"


def _curves(frame: pd.DataFrame, labels: Mapping[str, Any], **how: Any) -> Iterator[tuple[str, str, Any, str]]:
    for axis in AXES:
        others = {name: labels[name] for name in (*AXES, "labels") if name in labels and name != axis}
        asked = frame
        for name, allowed in _allowed({"labels": "real", **others}).items():
            asked = asked[asked[name].isin(allowed)] if name in frame else asked
        if axis not in frame or asked[axis].nunique() < 2:
            continue
        alike, parts = _parted(asked, but=axis)
        alike = alike.assign(**{name: f"{name} " + alike[name] for name in parts if name not in PLAIN})
        for value in (LOWER, COUNT):
            if alike[value].notna().any():
                made = curves(alike[alike[value].notna()], axis, value, by=parts)
                yield f"{value}-{axis}", f"{value} over {axis}", plots.study_curves(made, **how), "bands: over seeds"


def _cells(frame: pd.DataFrame) -> str:
    """A row per task, method, kind of labels, and whatever else has several values: means and ranges over seeds."""
    alike, parts = _parted(frame, always=("task", "method", "labels"))
    head = [name.replace("_", " ").capitalize() for name in parts]
    rows = []
    for key, part in alike.groupby(parts, sort=False):
        numbers = [_range(part[name]) for name in ("base_nll", "nll", "heads", "polarised")]
        rows.append([*(escape(str(value)) for value in key), str(len(part)), *numbers])
    note = "Mean over cells [lowest, highest]; NLL in nats per answer token of the test rows."
    columns = [*head, "Cells", "NLL base", "NLL edited", "Heads", "Gates decided"]
    return f'{table(columns, rows)}<p class="note">{note}</p>'


def _parted(frame: pd.DataFrame, always: tuple[str, ...] = ("task",), but: str = "") -> tuple[pd.DataFrame, list[str]]:
    """The frame with columns that part what is not alike, as words, and their names: ``always``, and all others with
    several values but seeds, draws and ``but``.
    """
    words = frame["options"].where(frame["options"] == "", " " + frame["options"])
    told = frame.assign(method=frame["method"] + words)
    axes = [name for name in (*FIELDS, *sorted(training_fields())) if name in frame and name not in (*RANDOM, but)]
    several = [name for name in axes if name != "options" and told[name].map(str).nunique() > 1]
    parts = [*always, *(name for name in several if name not in always)]
    return told.assign(**{name: told[name].map(str) for name in parts}), parts


def _range(values: Any) -> str:
    known = [float(value) for value in values if value is not None and value == value]
    if not known:
        return ""
    digits = 0 if max(known) >= 20 else 2
    return f"{sum(known) / len(known):.{digits}f} [{min(known):.{digits}f}, {max(known):.{digits}f}]"


def _stable(found: Stability) -> list[str]:
    """Nogueira's index of every task, in one sentence."""
    parts = []
    for group in found.groups:
        one = found.score(group)
        ends = "" if math.isnan(one.low) else f" [{one.low:.2f}, {one.high:.2f}]"  # two runs have no interval
        parts.append(f"{group} {one.value:.2f}{ends} (random {one.chance:.2f}, p {one.p:.2g})")
    told = [f"Stability over runs (Nogueira's index): {'; '.join(parts)}."]
    beside = found.above_chance()
    if "difference" in beside:
        told.append(
            f"Above chance, mean over tasks: the selected heads {beside[SELECTED]}, as many with the largest vectors "
            f"{beside[LARGEST]}, difference {beside['difference']}."
        )
    return told


def _shared(found: SharedHeads) -> list[str]:
    counts = ", ".join(
        f"{one.category} {one.heads} (by chance {one.expected:.1f} [{one.low:.0f}, {one.high:.0f}])"
        for one in found.counts
    )
    core = found.heads("core")
    named = f" Core: {', '.join(core[:HEADS])}{' …' if len(core) > HEADS else ''}." if core else ""
    return [
        f"Heads by how many tasks select them (core: {found.needed} of {len(found.tasks)} or more): {counts}.{named}"
    ]
