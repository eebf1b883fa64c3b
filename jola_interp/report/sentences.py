"""A Run in sentences: how it stands, what it scored, which heads it selects, what was measured of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

from jola_interp.analysis import Effects, GateSummary, KeepCurves, Usage, faithfulness, load_table
from jola_interp.analysis.ranking import refitted
from jola_interp.analysis.recipe import named_method
from jola_interp.analysis.summary import kept_label, percent
from jola_interp.analysis.usage import with_evidence
from jola_interp.convergence import UNDECIDED
from jola_interp.edits.base import Site
from jola_interp.edits.jola import JoLA
from jola_interp.evidence.card import Card

if TYPE_CHECKING:
    from jola_interp.runs import Run

METRICS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "bertscore": "BERTScore F1",
    "exact_match": "Exact match, %",
    "accuracy": "Accuracy, %",
    "likelihood_accuracy": "Accuracy by likelihood, %",
    "likelihood_accuracy_per_token": "Accuracy by likelihood per token, %",
    "likelihood_accuracy_per_character": "Accuracy by likelihood per character, %",
    "unparsed": "Answers that name no option, %",
    "label_nll": "Label tokens of the right option, nats",
    "format_nll": "All other tokens of the right answer, nats",
    "nll": "Cross-entropy of the answer, nats per token",
}


STOPPED = {
    "patience": " (stopped early: validation got no better)",
    "max_steps": " (as far as max_steps allows)",
    "callback": " (stopped by a callback)",
}


def subtitle(run: Run) -> str:
    """Method, preset, backend, seed and size."""
    found = run.config
    parts = [kind_of_edit(run)]
    parts += [f"preset {found['preset']}", f"backend {found['backend']}", f"seed {found['train']['seed']}"]
    return " · ".join([*parts, f"{run.edit.n_parameters():,} parameters", f"jola_interp {found['jola_interp']}"])


def kind_of_edit(run: Run) -> str:
    """The method and its equation, or JoLA and its gates."""
    if (method := named_method(run)) is not None:
        return f"{method.name}: {method.equation}"
    if run.edit.type_name != JoLA.type_name:
        return f"{run.edit.type_name}, no JoLA"
    return f"JoLA with {run.edit.gates} gates" if run.edit.gates != "none" else "JoLA without gates"


def _status(run: Run) -> list[str]:
    if run.status == "finished":
        return []
    return [f"<strong>This Run is {escape(run.status)}</strong>: what follows is its state when it stopped."]


def scores_in_words(run: Run) -> list[str]:
    """Base and edited score with intervals, chance and the paired difference."""
    scores = run.scores
    if not scores:
        return ["Not evaluated: the Run has no scores."]
    name = scores["metric"]
    base, edited = scores["base"][name], scores["edited"][name]
    text = (
        f"<strong>{metric_name(name)}: {interval(base)} → {interval(edited)}</strong>, base model → edited model, on "
        f"{scores['n']} test rows of {escape(scores['task'])}, with 95 % intervals."
    )
    if "chance" in scores:
        text += f" Chance is {scores['chance']:.1f}; the commonest answer alone would score {scores['majority']:.1f}."
    return [text, *_paired_in_words(scores)]


def _paired_in_words(scores: Mapping[str, Any]) -> list[str]:
    """Edited − base on the same rows, of the task's metric and of the answers' likelihood."""
    paired = scores.get("paired", {})
    chosen = [(name, paired[name]) for name in (scores["metric"], "nll") if name in paired]
    if not chosen:
        return []
    told = (f"{metric_name(name)} {interval(found)} (p {p_value(found['p'])})" for name, found in chosen)
    return [f"Edited − base on the same rows: {'; '.join(told)}."]


def p_value(value: float) -> str:
    """Such as "= .012"; escaped."""
    return "&lt; .001" if value < 0.001 else f"= {value:.3f}".replace("0.", ".")


def stamp(run: Run) -> list[str]:
    """Whether the gates have decided; a warning where they have not."""
    if not gated_sites(run):
        return []
    found = run.convergence
    if found is None:
        return ["No convergence stamp: the Run was cut short, or trained by an older version."]
    if found.converged:
        return [escape(found.sentence())]
    reasons = escape("; ".join(found.reasons))
    return [f'<div class="warning"><strong>Not converged:</strong> {reasons}.</div>']


def _owners(card: Card | None) -> list[str]:
    """An open additive gate does not make the offset the head's own: what the audit found, where it found so."""
    audited = [] if card is None else card.had.get("audit", {}).get("heads", [])
    adding = [head for head in audited if head["effect"] is not None]
    others = sum(not head["identified"] for head in adding)
    if not others:
        return []
    return [
        f"Of the {len(adding)} selected heads with an offset, {others} are not identified: other heads of the layer "
        "could host it as well. Their status says which gate is open, not whose the offset is."
    ]


def _heads_in_words(run: Run, summaries: Mapping[Site, GateSummary]) -> list[str]:
    if run.edit.type_name != JoLA.type_name:
        name = escape(run.edit.type_name)
        return [f"This Run has no JoLA gates: its edit is <code>{name}</code>, of which no rule selects heads."]
    if not summaries:
        return ["The edit has no gates: nothing was selected, every editable unit acts."]
    return [line for summary in summaries.values() for line in _site_in_words(run, summary)]


def _site_in_words(run: Run, summary: GateSummary) -> list[str]:
    used = ", ".join(f"{count} {status}" for status, count in summary.statuses.items() if status != "none")
    chosen = (
        f"<strong>{summary.selected} of {summary.units} {summary.noun} are selected</strong> under <code>"
        f"{escape(summary.rule)}</code>: {used}; {summary.statuses['none']} none."
    )
    low, high = UNDECIDED
    decided = (
        f"{summary.decided} of {summary.gates} gates ({percent(summary.decided_share)}) have decided, P(open) below "
        f"{low:g} or above {high:g}; {summary.settled} of the selected {summary.noun} have decided gates only."
    )
    acting = (
        f"At inference (gate: {escape(run.edit.inference)}) {summary.acting} {summary.noun} have a gate that is not 0: "
        "they change activations, selected or not."
    )
    return [chosen, decided, acting]


def _measured_in_words(run: Run) -> list[str]:
    """What the measured tables answer, a sentence each."""
    answers: tuple[Callable[[], str], ...] = (
        lambda: with_evidence(load_table(run, "usage", Usage), run).sentence(),
        lambda: replace(load_table(run, "keep", KeepCurves), refits=refitted(run)).sentence(),
        lambda: faithfulness(run, load_table(run, "effects", Effects)).sentence(),
    )
    found = []
    for answer in answers:
        with suppress(ValueError):  # not measured, or nothing to be said
            found.append(escape(answer()))
    return found


def _training(run: Run) -> list[str]:
    progress = run.config["progress"]
    stopped = STOPPED.get(str(progress.get("stopped")), "")
    best = progress.get("best_value")
    value = f" Best validation value: {best:.3f}." if best is not None else ""
    return [
        f"Trained for {progress['steps']} steps in {progress['epochs']} epochs{stopped}; kept: "
        f"{escape(kept_label(run))}.{value}"
    ]


def gated_sites(run: Run) -> list[Site]:
    """Sites at which the edit has gates."""
    gated = {site for site, _ in run.edit.log_alphas()}
    return [site for site in run.edit.masks() if site in gated]


def metric_name(name: str) -> str:
    """As people call it; escaped."""
    return escape(METRICS.get(name, name))


def interval(score: Mapping[str, float]) -> str:
    """Such as "12.3 [10.1, 14.5]"."""
    digits = 1 if abs(score["high"]) >= 10 else 2
    return f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def summary(run: Run, summaries: Mapping[Site, GateSummary], card: Card | None) -> list[str]:
    """Every sentence, as HTML."""
    heads = [*stamp(run), *_heads_in_words(run, summaries), *_owners(card)]
    return [*_status(run), *scores_in_words(run), *heads, *_measured_in_words(run), *_training(run)]
