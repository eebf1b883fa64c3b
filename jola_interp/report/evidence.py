"""The evidence card of a Run as a section: the verdict, every part in a row, and what may be said of the heads."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from jola_interp import plots
from jola_interp.analysis.controls import has_controls, stored_audit
from jola_interp.evidence.card import PARTS, Card, Part
from jola_interp.evidence.words import VERDICTS, in_words
from jola_interp.report.page import figure, listed, table
from jola_interp.report.sentences import gated_sites
from jola_interp.runs import edit_digest

if TYPE_CHECKING:
    from jola_interp.runs import Run

HEADS = 6
"""How many selected heads are spoken of one by one."""
QUESTION = "jola-interp evidence RUN --part"


def evidence(run: Run, card: Card | None) -> str:
    """The verdict, every part in a row, what may be said of the heads, and the gains beside their controls."""
    if card is None:
        return f"<p>Nothing here was checked against a null: {how_to_check(run)}.</p>"
    rows = [[f"<code>{part.name}</code>", escape(part.question), _answer(part, card)] for part in PARTS]
    asked = [f"{name}: {', '.join(_asked(*item) for item in one.items())}" for name, one in card.asked.items() if one]
    note = f"Asked for: {'; '.join(asked)}." if asked else ""
    return (
        f"{_foreign(run, card)}{verdict(card)}{table(['Part', 'Question', 'Answer'], rows, 'evidence')}"
        f'<p class="note">{escape(note)}</p>{_may_be_said(card)}{_controls(run, card)}'
    )


def _asked(name: str, value: Any) -> str:
    """A setting; other rows are told by their number, not by their fingerprints."""
    return f"{len(value)} {name}" if isinstance(value, list) else f"{name} {value}"


def how_to_check(run: Run) -> str:
    """What to type for a card."""
    if "heads" not in gated_sites(run):
        return "evidence is about heads that gates selected, and this edit has none"
    return (
        '<code class="command">jola-interp evidence RUN</code> runs what needs no training, '
        f'<code class="command">{QUESTION} all</code> everything'
    )


def verdict(card: Card) -> str:
    """The word, large, and what it means."""
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
    return f'<div class="said"><h3>What may be said of the selected heads</h3>{listed(lines)}{more}</div>'


def _said(label: str, sentence: str) -> str:
    """The label stands in front, once."""
    rest = sentence.removeprefix(label)
    return f"<strong>{escape(label)}</strong>{': ' if rest == sentence else ''}{escape(rest)}."


def _controls(run: Run, card: Card) -> str:
    return figure("controls", "Gains beside their controls", plots.controls(run)) if has_controls(card) else ""
