"""Tokens of a row with what the edit does at each as their colour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jola_interp.analysis.tables import load_table
from jola_interp.analysis.token_strips import token_strip as strip_of
from jola_interp.analysis.tokens import TABLE, Of, Tokens
from jola_interp.plots.style import Renderer, require

if TYPE_CHECKING:
    from jola_interp.runs import Run


def token_strip(
    run_or_table: Run | Tokens,
    of: Of = "shift",
    rows: Iterable[int] | None = None,
    limit: float | None = None,
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """Rows as they are read, each token on the colour of its shift, or of the change of its log p.

    ``shift`` is on viridis from 0, ``logp`` on blue (less likely) to orange (likelier) around the true zero. A row's
    first token is hatched and left out of the scale; the answer is underlined.

    Args:
        run_or_table: a Run whose tokens were measured, or what ``analysis.tokens`` returned.
        of: ``shift`` or ``logp``.
        rows: which rows of the table; None is all.
        limit: the end of the colour scale; None is the largest value that is shown.
        renderer: ``plotly`` for the screen: HTML without any script, an object that a notebook shows and whose
            ``save(path)`` writes a page (.html); a token's numbers stand in its tooltip · ``matplotlib`` for print.
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Raises:
        ValueError: an unknown measure or renderer, a row that is not there, a limit that is not above 0.
        NotMeasuredError: the Run holds no such table.
    """
    require(renderer, width)
    table = run_or_table if isinstance(run_or_table, Tokens) else load_table(run_or_table, TABLE, Tokens)
    strip = strip_of(table, of, rows, limit)
    if renderer == "plotly":
        from jola_interp.plots.screen_tokens import draw_strip

        return draw_strip(strip)
    from jola_interp.plots.printed_tokens import draw_strip as print_strip

    return print_strip(strip, width or 6.75)
