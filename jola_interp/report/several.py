"""The report of several Runs: what each scored and selected, how far the selections overlap, and their maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from itertools import combinations
from typing import TYPE_CHECKING

from jola_interp import plots
from jola_interp.analysis import compare_methods, gate_summary
from jola_interp.analysis.recipe import named_method
from jola_interp.analysis.summary import percent, title_of
from jola_interp.evidence.card import Card
from jola_interp.evidence.overlap import overlap
from jola_interp.report.figures import undecided_note
from jola_interp.report.page import figure, listed, section, table
from jola_interp.report.sentences import gated_sites, interval, metric_name, p_value, subtitle, summary
from jola_interp.report.tables import recipe
from jola_interp.selection import DEFAULT_RULE

if TYPE_CHECKING:
    from jola_interp.runs import Run

PAIRS = 45
"""As many pairs of Runs are compared at most: all pairs of ten."""


def title_of_all(runs: Sequence[Run]) -> tuple[str, str]:
    """Title and subtitle."""
    models, tasks = (_distinct(run.config[part]["name"] for run in runs) for part in ("model", "task"))
    return f"{len(runs)} Runs: {', '.join(models)} on {', '.join(tasks)}", f"selected: {DEFAULT_RULE}"


def body_of_all(runs: Sequence[Run]) -> str:
    """A table of all of them, what they share, and each by itself."""
    labels = labels_of(runs)
    parts = [section("Scores and selections", _overview(runs, labels)), _methods(runs), _shared(runs, labels)]
    parts += [_one(i, run, label) for i, (run, label) in enumerate(zip(runs, labels, strict=True))]
    return "\n".join(parts)


def labels_of(runs: Sequence[Run]) -> list[str]:
    """The least that tells them apart: method, task, seed, and the directory where that is not enough."""
    tasks = len(_distinct(run.config["task"]["name"] for run in runs)) > 1
    models = len(_distinct(run.config["model"]["name"] for run in runs)) > 1
    found = []
    for run in runs:
        parts = [run.config["model"]["name"]] if models else []
        parts += [run.config["task"]["name"]] if tasks else []
        method = named_method(run)
        parts += [method.name if method else run.edit.type_name, f"s{run.config['train']['seed']}"]
        found.append(" ".join(parts))
    times = Counter(found)
    return [f"{one} ({_place(run)})" if times[one] > 1 else one for one, run in zip(found, runs, strict=True)]


def _place(run: Run) -> str:
    """The directory's name; of a study's cell that of the cell, where every Run lies in ``run``."""
    return run.path.parent.name if run.path.name == "run" else run.path.name


def _distinct(names: object) -> list[str]:
    return list(dict.fromkeys(names))  # type: ignore[call-overload]


def _overview(runs: Sequence[Run], labels: Sequence[str]) -> str:
    head = ["Run", "Score", "Base", "Edited", "Edited − base, cross-entropy", "Selected", "Decided", "Verdict"]
    rows = [[escape(label), *_scored(run), *_gated(run)] for run, label in zip(runs, labels, strict=True)]
    note = (
        "Scores with 95 % intervals over test rows; cross-entropy in nats per answer token, paired by row. Runs on "
        "other rows or with other prompts cannot be compared by their scores."
    )
    return f'{table(head, rows)}<p class="note">{note}</p>'


def _scored(run: Run) -> list[str]:
    found = run.scores
    if not found:
        return ["not evaluated", "", "", ""]
    name = found["metric"]
    paired = found.get("paired", {}).get("nll")
    difference = f"{interval(paired)} (p {p_value(paired['p'])})" if paired else ""
    return [metric_name(name), interval(found["base"][name]), interval(found["edited"][name]), difference]


def _gated(run: Run) -> list[str]:
    card = Card.load(run)
    verdict = card.verdict if card else "not questioned"
    if "heads" not in gated_sites(run):
        return ["no gates on heads", "", "" if card is None else verdict]
    found = gate_summary(run, DEFAULT_RULE)
    uses = ", ".join(f"{count} {status}" for status, count in found.statuses.items() if status != "none")
    return [f"{found.selected} of {found.units}: {uses}", percent(found.decided_share), verdict]


def _methods(runs: Sequence[Run]) -> str:
    """Methods paired on the same rows, where the Runs are such."""
    with suppress(ValueError):
        found = compare_methods(runs)
        if len(found.methods) > 1:
            return section("Methods on the same rows", f'<div class="wide">{found._repr_html_()}</div>')
    return ""


def _shared(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """How far the selected heads overlap, pair by pair; the maps of two beside each other."""
    gated = [(run, label) for run, label in zip(runs, labels, strict=True) if "heads" in gated_sites(run)]
    shapes = {(run.edit.shape, run.config["model"]["fingerprint"]) for run, _ in gated}
    if len(gated) < 2:
        return ""
    if len(shapes) > 1:
        return section("What they share", "<p>The Runs are of several models: their heads are not the same heads.</p>")
    pairs = list(combinations(gated, 2))
    rows = [_pair(a, b) for a, b in pairs[:PAIRS]]
    left = f" {len(pairs) - PAIRS} further pairs are left out." if len(pairs) > PAIRS else ""
    note = (
        "Jaccard: |A ∩ B| / |A ∪ B|. Chance: random heads, as many in every layer as each Run selects. p: random pairs "
        f"that overlap as much or more, one-sided.{left}"
    )
    head = ["Run A", "Run B", "Shared", "Jaccard", "Chance", "p"]
    found = section("What they share", f'{table(head, rows)}<p class="note">{note}</p>')
    if len(gated) == 2:
        with suppress(ValueError):  # no kind of gate in common
            found += figure("compared", "Side by side", plots.compare_heads(gated[0][0], gated[1][0]))
    return found


def _pair(a: tuple[Run, str], b: tuple[Run, str]) -> list[str]:
    (run_a, _), (run_b, _) = a, b
    masks = [run.edit.masks()["heads"].cpu().numpy() for run in (run_a, run_b)]
    chosen = [run.selection(DEFAULT_RULE).units for run in (run_a, run_b)]
    found = overlap(chosen[0], chosen[1], masks[0], others=masks[1])
    shared = f"{found.shared} of {found.sizes[0]} and {found.sizes[1]}"
    numbers = [f"{found.jaccard:.2f}", f"{found.chance:.2f}", p_value(found.p).removeprefix("= ")]
    return [escape(a[1]), escape(b[1]), shared, *numbers]


def _one(number: int, run: Run, label: str) -> str:
    """A Run by itself, in short; its own report has all of it."""
    summaries = {site: gate_summary(run, DEFAULT_RULE, site) for site in gated_sites(run)}
    said = listed(summary(run, summaries, Card.load(run)))
    about = f'<p class="subtitle">{escape(title_of(run))} · {escape(subtitle(run))}</p>'
    found = section(label, f"{about}{said}{recipe(run)}")
    for site, one in summaries.items():
        drawn = plots.heads(run, site=site)
        found += figure(f"run{number}-{site}", f"{label}: gates ({site})", drawn, undecided_note(one))
    return found
