"""One HTML file that says what a Run is, what it scored, and which heads it uses. It loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from jola_interp import _files, plots
from jola_interp.analysis import (
    Effects,
    GateSummary,
    KeepCurves,
    NotMeasuredError,
    Usage,
    faithfulness,
    gate_summary,
    load_table,
)
from jola_interp.analysis.controls import has_controls, stored_audit
from jola_interp.analysis.ranking import refitted
from jola_interp.analysis.recipe import changed_edit, changed_training, command, named_method, python_lines
from jola_interp.analysis.summary import kept_label, percent, title_of
from jola_interp.analysis.usage import with_evidence
from jola_interp.convergence import DECIDED_SHARE, UNDECIDED
from jola_interp.edits.base import Site
from jola_interp.edits.jola import JoLA
from jola_interp.evidence.card import PARTS, Card, Part
from jola_interp.evidence.words import VERDICTS, in_words
from jola_interp.runs import edit_digest
from jola_interp.selection import DEFAULT_RULE

if TYPE_CHECKING:
    from jola_interp.runs import Run

EXAMPLES, LONGEST = 5, 700
"""How many test rows are shown, and how much of a text."""
HEADS = 6
"""How many selected heads are spoken of one by one."""
QUESTION = "jola-interp evidence RUN --part"
STOPPED = {
    "patience": " (stopped early: validation got no better)",
    "max_steps": " (as far as max_steps allows)",
    "callback": " (stopped by a callback)",
}
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


def report(run: Run, path: str | Path | None = None) -> Path:
    """Write the report of a Run: summary, scores, evidence, figures, examples, settings, how to train it again.

    The file needs neither the model nor a network, and follows the reader's choice of light or dark.

    Args:
        run: any Run; what it lacks (scores, evidence, predictions, gates) the report says it lacks.
        path: where to; None is ``report.html`` in the Run's directory.

    Returns:
        The path of the file.
    """
    from plotly.offline import get_plotlyjs

    target = run.path / "report.html" if path is None else Path(path)
    summaries = {site: gate_summary(run, DEFAULT_RULE, site) for site in _gated_sites(run)}
    card = Card.load(run)
    heads = [*_stamp(run), *_heads_in_words(run, summaries), *_owners(card)]
    parts = {
        "title": escape(title_of(run)),
        "subtitle": escape(_subtitle(run)),
        "summary": _list([*_status(run), *_scores_in_words(run), *heads, *_measured_in_words(run), *_training(run)]),
        "scores": _scores(run),
        "evidence": _evidence(run, card),
        "figures": _figures(run, summaries),
        "examples": _examples(run),
        "settings": _settings(run),
        "reproduce": _reproduce(run),
        "plotly": get_plotlyjs(),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    _files.write_bytes(target, PAGE.substitute(parts).encode())
    return target


# -- in words ------------------------------------------------------------------------------------------------------


def _subtitle(run: Run) -> str:
    found = run.config
    parts = [_kind_of_edit(run)]
    parts += [f"preset {found['preset']}", f"backend {found['backend']}", f"seed {found['train']['seed']}"]
    return " · ".join([*parts, f"{run.edit.n_parameters():,} parameters", f"jola_interp {found['jola_interp']}"])


def _kind_of_edit(run: Run) -> str:
    if (method := named_method(run)) is not None:
        return f"{method.name}: {method.equation}"
    if run.edit.type_name != JoLA.type_name:
        return f"{run.edit.type_name}, no JoLA"
    return f"JoLA with {run.edit.gates} gates" if run.edit.gates != "none" else "JoLA without gates"


def _status(run: Run) -> list[str]:
    if run.status == "finished":
        return []
    return [f"<strong>This Run is {escape(run.status)}</strong>: what follows is its state when it stopped."]


def _scores_in_words(run: Run) -> list[str]:
    scores = run.scores
    if not scores:
        return ["Not evaluated: the Run has no scores."]
    name = scores["metric"]
    base, edited = scores["base"][name], scores["edited"][name]
    text = (
        f"<strong>{_metric(name)}: {_interval(base)} → {_interval(edited)}</strong>, base model → edited model, on "
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
    told = (f"{_metric(name)} {_interval(found)} (p {_p(found['p'])})" for name, found in chosen)
    return [f"Edited − base on the same rows: {'; '.join(told)}."]


def _p(value: float) -> str:
    return "&lt; .001" if value < 0.001 else f"= {value:.3f}".replace("0.", ".")


def _stamp(run: Run) -> list[str]:
    """Whether the gates have decided; a warning where they have not."""
    if not _gated_sites(run):
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


# -- tables --------------------------------------------------------------------------------------------------------


def _scores(run: Run) -> str:
    scores = run.scores
    if not scores:
        return "<p>None. <code>jola-interp evaluate RUN</code> writes them.</p>"
    rows = [
        [_metric(name), _interval(base), _interval(scores["edited"][name]), str(base["n"]), escape(base["method"])]
        for name, base in scores["base"].items()
    ]
    protocol = "; ".join(f"{name} {value}" for name, value in scores["protocol"].items())
    notes = [f"Protocol: {protocol}."]
    notes += [f"{_metric(name)}: {signature}." for name, signature in scores.get("signatures", {}).items()]
    head = ["Score", "Base", "Edited", "Rows", "95 % interval by"]
    return _table(head, rows) + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _settings(run: Run) -> str:
    """Every setting; those that differ from the preset stand out."""
    found, changed = run.config, {**changed_training(run), **_changed_edit(run)}
    groups = {
        "Model": {name: value for name, value in found["model"].items() if name != "head_shape"}
        | found["model"]["head_shape"],
        "Task": {name: value for name, value in found["task"].items() if name != "sizes"} | found["task"]["sizes"],
        "Edit": {**found["edit"], **{name: value for name, value in changed.items() if name in ("layers", "heads")}},
        "Training": found["train"],
    }
    tables = []
    for name, values in groups.items():
        listed = _pairs(values, {} if name in ("Model", "Task") else changed)  # a preset names no model and no task
        tables.append(f'<div class="{name.lower()}"><h3>{name}</h3>{listed}</div>')
    note = f'<p class="note">Bold: not as in the preset {escape(str(found["preset"]))}.</p>'
    return f'<div class="settings">{"".join(tables)}</div>{note}'


def _changed_edit(run: Run) -> dict[str, Any]:
    """Against the preset, which only has switches for JoLA."""
    return changed_edit(run) if run.edit.type_name == JoLA.type_name else {}


def _pairs(values: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """A definition list: it may flow over several columns, which a table may not."""
    rows = []
    for name, value in values.items():
        text = escape(", ".join(map(str, value)) if isinstance(value, list) else str(value))
        shown = f"<strong>{text}</strong>" if name in changed else text
        rows.append(f"<div><dt>{escape(name)}</dt><dd>{shown}</dd></div>")
    return f"<dl>{''.join(rows)}</dl>"


def _examples(run: Run) -> str:
    rows = run.predictions
    if not rows:
        return "<p>None: the Run has no predictions.</p>"
    shown = rows[:EXAMPLES]
    cells = [[_text(row.get(name, "")) for name in ("instruction", "base", "edited", "answer")] for row in shown]
    table = _table(["Instruction", "Base model", "Edited model", "Reference"], cells, "examples")
    return f"<p>The first {len(shown)} of {len(rows)} test rows, not picked.</p>{table}"


def _reproduce(run: Run) -> str:
    found = run.config
    return (
        f"{_recipe(run)}"
        "<p>The rows depend on the seed they were drawn with (42 unless you chose one). The right rows and "
        f"weights give these fingerprints: task <code>{escape(found['task']['fingerprint'][:16])}</code>, model "
        f"<code>{escape(found['model']['fingerprint'][:16])}</code>.</p>"
    )


def _recipe(run: Run) -> str:
    if run.edit.type_name != JoLA.type_name and named_method(run) is None:
        return (
            f"<p>Lines are written for JoLA only; this edit is <code>{escape(run.edit.type_name)}</code>, with the "
            "switches above.</p>"
        )
    line = command(run)
    shell = f"<pre>{escape(line)}</pre>" if line else "<p>The command line has no words for this edit.</p>"
    return f"<pre>{escape(python_lines(run))}</pre>{shell}"


# -- evidence ------------------------------------------------------------------------------------------------------


def _evidence(run: Run, card: Card | None) -> str:
    """The verdict, every part in a row, what may be said of the heads, and the gains beside their controls."""
    if card is None:
        return f"<p>Nothing here was checked against a null: {_how_to_check(run)}.</p>"
    rows = [[f"<code>{part.name}</code>", escape(part.question), _answer(part, card)] for part in PARTS]
    asked = [
        f"{name}: {', '.join(f'{key} {value}' for key, value in one.items())}"
        for name, one in card.asked.items()
        if one
    ]
    note = f"Asked for: {'; '.join(asked)}." if asked else ""
    return (
        f"{_foreign(run, card)}{_verdict(card)}{_table(['Part', 'Question', 'Answer'], rows, 'evidence')}"
        f'<p class="note">{escape(note)}</p>{_may_be_said(card)}{_controls(run, card)}'
    )


def _how_to_check(run: Run) -> str:
    if "heads" not in _gated_sites(run):
        return "evidence is about heads that gates selected, and this edit has none"
    return (
        '<code class="command">jola-interp evidence RUN</code> runs what needs no training, '
        f'<code class="command">{QUESTION} all</code> everything'
    )


def _verdict(card: Card) -> str:
    word = card.verdict
    return f'<p class="verdict"><strong>{escape(word.capitalize())}</strong>{escape(VERDICTS[word])}</p>'


def _answer(part: Part, card: Card) -> str:
    if part.name in card.parts:
        return escape(in_words(part.name, card.parts[part.name]))
    trainings = f" ({part.trainings} training{'s' * (part.trainings > 1)})" if part.trainings else ""
    command = f'<code class="command">{QUESTION} {part.name}</code>'
    return f'<span class="missing">Not run: {command}{trainings}</span>'


def _foreign(run: Run, card: Card) -> str:
    """Evidence follows its Run's directory, which someone may have changed."""
    if card.settings["edit"] == edit_digest(run.edit):
        return ""
    return '<p class="warning"><strong>This evidence is about another edit</strong> than the one in this Run.</p>'


def _may_be_said(card: Card) -> str:
    """Only what the audit allows: a head adds its offset where no other head could."""
    if "audit" not in card.had:
        return ""
    audit = stored_audit(card.had["audit"])
    if not audit.heads:
        return ""
    lines = [_said(head.label, audit.sentence(head.label)) for head in audit.heads[:HEADS]]
    left = len(audit.heads) - HEADS
    more = f'<p class="note">And {left} more, in <code>evidence.json</code>.</p>' if left > 0 else ""
    return f'<div class="said"><h3>What may be said of the selected heads</h3>{_list(lines)}{more}</div>'


def _said(label: str, sentence: str) -> str:
    """The label stands in front, once."""
    rest = sentence.removeprefix(label)
    return f"<strong>{escape(label)}</strong>{': ' if rest == sentence else ''}{escape(rest)}."


def _controls(run: Run, card: Card) -> str:
    return _figure("controls", "Gains beside their controls", plots.controls(run)) if has_controls(card) else ""


# -- figures -------------------------------------------------------------------------------------------------------


def _figures(run: Run, summaries: Mapping[Site, GateSummary]) -> str:
    """The gallery of the heads; beside it the gates of other sites. Controls stand with the evidence."""
    parts = []
    for entry, figure in plots.gallery(run):
        if entry.name == "controls":
            continue
        before = _warning(summaries["heads"]) if entry.name == "heads" else ""
        parts.append(_figure(f"figure-{entry.name}", entry.heading, figure, before, entry.see))
    for site, summary in summaries.items():
        if site != "heads":
            parts.append(_of_site(run, site, summary))
    return "".join([*parts, _tokens(run)])


def _of_site(run: Run, site: Site, summary: GateSummary) -> str:
    found = _figure(f"heads-{site}", f"Gates ({site})", plots.heads(run, site=site), _warning(summary))
    if not len(run.gates):
        return found
    snapshots, curves = plots.gate_snapshots(run, site=site), plots.gate_trajectories(run, site=site)
    found += _figure(f"snapshots-{site}", f"Gates over training ({site})", snapshots)
    return found + _figure(f"trajectories-{site}", f"Every gate's path ({site})", curves)


def _tokens(run: Run) -> str:
    """The rows whose tokens were measured."""
    try:
        strips = [plots.token_strip(run, of=of) for of in ("logp", "shift")]
    except NotMeasuredError:
        return ""
    return f"<section><h2>Token by token</h2>{''.join(strip.fragment for strip in strips)}</section>"


def _warning(summary: GateSummary) -> str:
    """Said beside the map, where it can't be overlooked: selection by undecided gates is none."""
    if summary.decided_share >= DECIDED_SHARE:
        return ""
    return (
        f'<p class="warning"><strong>Only {percent(summary.decided_share)} of the gates have decided.</strong> '
        f"{summary.gates - summary.decided} of {summary.gates} are neither open nor shut (hatched). An undecided gate "
        "is not a selected head: read the map as a state of training, not as a result. More steps or a higher "
        "<code>gate_lr</code> let gates decide.</p>"
    )


def _figure(name: str, heading: str, figure: Any, before: str = "", see: str = "") -> str:
    figure.update_layout(title=None, margin_t=56, height=figure.layout.height - 20)  # the heading is the title
    inner = figure.to_html(
        include_plotlyjs=False, full_html=False, div_id=name, config={"displaylogo": False, "responsive": False}
    )
    said = f'<p class="note">{escape(see[:1].upper() + see[1:])}.</p>' if see else ""
    return f'<section><h2>{escape(heading)}</h2>{said}{before}<div class="figure">{inner}</div></section>'


# -- pieces --------------------------------------------------------------------------------------------------------


def _gated_sites(run: Run) -> list[Site]:
    gated = {site for site, _ in run.edit.log_alphas()}
    return [site for site in run.edit.masks() if site in gated]


def _metric(name: str) -> str:
    return escape(METRICS.get(name, name))


def _interval(score: Mapping[str, float]) -> str:
    digits = 1 if abs(score["high"]) >= 10 else 2
    return f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def _text(value: object) -> str:
    text = str(value)
    return escape(text if len(text) <= LONGEST else text[:LONGEST] + " …")


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "plain") -> str:
    """Cells are escaped already."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --paper: #ffffff; --ink: #222222; --soft: #666666; --line: #dddddd; --box: #f5f5f3; --alarm: #fff3d6; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e4e4e4; --soft: #9a9a9a; --line: #3a3d42; --box: #202328; --alarm: #3d3218; }
}
body { margin: 2rem auto 4rem; padding: 0 1.25rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 Inter, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: .95rem; margin: 0 0 .3rem; }
.subtitle, .note { color: var(--soft); font-size: .88rem; margin: .3rem 0; overflow-wrap: anywhere; }
li { margin: .3rem 0; }
.wide, .figure { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line);
  font-weight: normal; }
thead th { color: var(--soft); }
.verdict { margin: 0 0 .8rem; }
.verdict strong { display: block; font-size: 1.9rem; line-height: 1.2; }
.evidence { font-size: .84rem; line-height: 1.35; }
.evidence td:first-child { white-space: nowrap; }
.evidence td:nth-child(2) { min-width: 13rem; }
.missing { color: var(--soft); }
.command { white-space: nowrap; }
.said { font-size: .9rem; margin-top: 1.2rem; }
.said ul { margin: .2rem 0; padding-left: 1.2rem; }
li:has(> .warning) { list-style: none; }
.examples td { width: 25%; min-width: 11rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
.settings { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.5rem; }
.training { grid-column: 1 / -1; }
.training dl { columns: 17rem; column-gap: 1.5rem; }
dl { margin: 0; font-size: .88rem; }
dl div { display: flex; gap: 1rem; padding: .22rem 0; border-bottom: 1px solid var(--line); break-inside: avoid; }
dt { color: var(--soft); flex: 0 0 9rem; overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.warning { background: var(--alarm); padding: .7rem 1rem; border-radius: 4px; }
pre { background: var(--box); padding: .8rem 1rem; border-radius: 4px; overflow-x: auto; font-size: .85rem; }
code { background: var(--box); padding: 0 .25em; border-radius: 3px; font-size: .9em; }
</style>
<script>$plotly</script>
</head>
<body>
<h1>$title</h1>
<p class="subtitle">$subtitle</p>
$summary
<section><h2>Scores</h2>$scores</section>
<section><h2>Is it real?</h2>$evidence</section>
$figures
<section><h2>Examples</h2>$examples</section>
<section><h2>Settings</h2>$settings</section>
<section><h2>Train it again</h2>$reproduce</section>
<script>
// Figures are drawn for white paper; on dark paper their ink and the lines between key-value groups change too.
(function () {
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function paint() {
    var ink = dark.matches ? "#e4e4e4" : "#222222", paper = dark.matches ? "#16181c" : "#ffffff";
    document.querySelectorAll(".plotly-graph-div").forEach(function (plot) {
      var change = { "font.color": ink, "paper_bgcolor": paper }, shapes = plot.layout.shapes || [];
      plot.separators = plot.separators || shapes.map(function (shape) { return shape.line.color === "white"; });
      shapes.forEach(function (shape, i) {
        if (plot.separators[i]) { change["shapes[" + i + "].line.color"] = paper; }
      });
      Plotly.relayout(plot, change);
    });
  }
  dark.addEventListener("change", paint);
  if (dark.matches) { paint(); }
})();
</script>
</body>
</html>
""")
