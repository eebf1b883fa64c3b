"""The report of a study: what was trained, and whether heads are shared, stable, and worth anything elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from jola_interp import plots
from jola_interp.analysis.study_curves import curves
from jola_interp.report.page import figure, listed, section, table

if TYPE_CHECKING:
    import pandas as pd

    from jola_interp.analysis import SharedHeads, Stability
    from jola_interp.study.answers import Answers
    from jola_interp.study.study import Study

HEADS = 12
"""Heads that are named."""
AXES = ("n_train", "penalty")
"""Axes over which curves are drawn, where cells have several values of them."""
LOWER, COUNT = "nll", "heads"


def title_of_study(study: Study) -> tuple[str, str]:
    """Title and subtitle."""
    tasks, models = (list(dict.fromkeys(getattr(cell, name) for cell in study.cells)) for name in ("task", "model"))
    status = study.status()
    counted = ", ".join(f"{number} {state}" for state, number in status.counts.items() if number)
    return f"Study {study.path.name}: {', '.join(models)} on {len(tasks)} tasks", f"{len(study)} cells: {counted}"


def body_of_study(study: Study, rule: str, **labels: Any) -> str:
    """Answers in words, then every question with its figures."""
    found, frame = study.ask(rule, **labels), study.frame()
    parts = [listed(map(escape, in_words(found))), section("Cells", _cells(frame))]
    for name, heading, drawn, see in figures_of(found, frame):
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
    for what, one in (("Edits carried over", found.transfer), ("Heads trained anew", found.heads)):
        if one is not None and one.mantel is not None:
            said.append(f"{what}, against overlap of heads: {one.mantel.sentence()}")
    if found.random_heads:
        shares = "; ".join(f"{task} {gain:.2f}" for task, gain in found.random_heads.items())
        said.append(
            f"Random heads trained anew, as a share of what the task's own heads gain when trained anew: {shares}."
        )
    return said


def figures_of(found: Answers, frame: pd.DataFrame, **how: Any) -> Iterator[tuple[str, str, Any, str]]:
    """(name, heading, figure, what to see) of everything that can be drawn; ``how`` goes to the renderer."""
    yield (
        "overlaps", "Do tasks share heads?", plots.overlap_matrix(found.overlaps, **how),
        "overlap above chance; the diagonal is other seeds of the same task, which is what two tasks have to beat",
    )  # fmt: skip
    yield (
        "overlap-rules",
        "Under every rule",
        plots.overlap_summary(found.overlaps, **how),
        "other rules, other answers?",
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
    yield from _curves(frame, **how)


def _transfers(found: Answers, **how: Any) -> Iterator[tuple[str, str, Any, str]]:
    for name, what, one in (("transfer", "edit", found.transfer), ("heads", "heads, trained anew,", found.heads)):
        if one is None:
            continue
        heading = f"A task's {what} on another".replace(",  on", ", on")
        yield name, heading, plots.transfer_matrix(one, **how), "1 is as good as the target's own, 0 is nothing"
        if one.mantel is not None:
            against = plots.transfer_against_overlap(one, **how)
            yield f"{name}-overlap", f"{heading}: against overlap", against, "does sharing heads say what carries over?"


def _curves(frame: pd.DataFrame, **how: Any) -> Iterator[tuple[str, str, Any, str]]:
    for axis in AXES:
        if axis not in frame or frame[axis].nunique() < 2:
            continue
        for value in (LOWER, COUNT):
            if frame[value].notna().any():
                made = curves(frame[frame[value].notna()], axis, value, by="task")
                yield f"{value}-{axis}", f"{value} over {axis}", plots.study_curves(made, **how), "bands: over seeds"


def _cells(frame: pd.DataFrame) -> str:
    """A row per task, method and kind of labels: means and ranges over seeds."""
    head = ["Task", "Method", "Labels", "Cells", "NLL base", "NLL edited", "Heads", "Gates decided"]
    rows = []
    for (task, method, labels), part in frame.groupby(["task", "method", "labels"], sort=False):
        numbers = [_range(part[name]) for name in ("base_nll", "nll", "heads", "polarised")]
        rows.append([escape(str(task)), escape(str(method)), escape(str(labels)), str(len(part)), *numbers])
    note = "Mean over cells [lowest, highest]; NLL in nats per answer token of the test rows."
    return f'{table(head, rows)}<p class="note">{note}</p>'


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
        parts.append(
            f"{group} {one.value:.2f} [{one.low:.2f}, {one.high:.2f}] (random {one.chance:.2f}, p {one.p:.2g})"
        )
    return [f"Stability over runs (Nogueira's index): {'; '.join(parts)}."]


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
