"""Attention patterns before and after an edit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jola_interp.analysis.attention import TABLE, AttentionPatterns, attention_sheet
from jola_interp.analysis.grids import Sheet, Ticks
from jola_interp.analysis.tables import load_table
from jola_interp.plots.maps import sheet
from jola_interp.plots.style import Renderer, require

if TYPE_CHECKING:
    from jola_interp.runs import Run


def attention(
    run_or_table: Run | AttentionPatterns,
    row: int = 0,
    heads: Iterable[int | str] | None = None,
    log: bool = False,
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """Patterns [query, key] of the base and of the edited model, and their difference: a row of maps per head.

    Weights are on one fixed scale from 0 to 1, changes around the true zero. Queries run downwards, keys to the right;
    what a query cannot see is blank. The notes hold each head's numbers beside those of random edits.

    Args:
        run_or_table: a Run whose attention was measured, or what ``analysis.attention`` returned.
        row: which row of the table.
        heads: which of its heads, by label or place; None is all.
        log: weights on logarithmic colours, where most are too small to be told apart between 0 and 1.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: a row or head that is not in the table, or an unknown renderer.
        NotMeasuredError: the Run holds no such table.
    """
    require(renderer, width)
    if isinstance(run_or_table, AttentionPatterns):
        table = run_or_table
    else:
        table = load_table(run_or_table, TABLE, AttentionPatterns)
    found = attention_sheet(table, row, heads, log)
    return sheet(_for_print(found) if renderer == "matplotlib" else found, renderer, width)


def _for_print(found: Sheet) -> Sheet:
    """With a box for every character of a token that the font lacks."""
    from jola_interp.plots.printed_tokens import MISSING, SANS, printable

    def ticks(given: Ticks) -> Ticks:
        return tuple((place, printable(text, SANS)) for place, text in given)

    rows = tuple(
        tuple(replace(panel, x_ticks=ticks(panel.x_ticks), y_ticks=ticks(panel.y_ticks)) for panel in panels)
        for panels in found.rows
    )
    lacking = [panel.x_ticks for panel in found.panels] != [panel.x_ticks for row in rows for panel in row]
    notes = (*found.notes, f"{MISSING}: a character that {SANS} lacks.") if lacking else found.notes
    return replace(found, rows=rows, title=printable(found.title, SANS), notes=notes)
