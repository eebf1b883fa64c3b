"""The report of one Run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jola_interp.analysis import gate_summary
from jola_interp.evidence.card import Card
from jola_interp.report.evidence import evidence
from jola_interp.report.figures import figures
from jola_interp.report.page import listed, section
from jola_interp.report.sentences import gated_sites, summary
from jola_interp.report.tables import examples, reproduce, scores, settings
from jola_interp.selection import DEFAULT_RULE

if TYPE_CHECKING:
    from jola_interp.runs import Run


def body_of(run: Run) -> str:
    """Its sections, from what it came to down to how to train it again."""
    summaries = {site: gate_summary(run, DEFAULT_RULE, site) for site in gated_sites(run)}
    card = Card.load(run)
    parts = [
        listed(summary(run, summaries, card)),
        section("Scores", scores(run)),
        section("Is it real?", evidence(run, card)),
        figures(run, summaries),
        section("Examples", examples(run)),
        section("Settings", settings(run)),
        section("Train it again", reproduce(run)),
    ]
    return "\n".join(parts)
