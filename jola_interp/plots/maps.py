"""Layer × head maps of a Run's gates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jola_interp import selection
from jola_interp.analysis import Sheet, head_maps, snapshots
from jola_interp.analysis.gate_maps import compare_heads as compared
from jola_interp.edits.base import Site
from jola_interp.plots.style import Renderer, require

if TYPE_CHECKING:
    from jola_interp.runs import Run


def heads(
    run: Run,
    rule: str = selection.DEFAULT_RULE,
    site: Site = "heads",
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """How the kept edit uses each head: P(open) of each kind of gate, and the status under a rule.

    Layer 0 is at the bottom; white lines part heads that share key and value. Hatching marks a gate that is neither
    open nor shut (.05 ≤ P(open) ≤ .95), and in the status panel a head that has such a gate. Beside each map stands the
    mean P(open) of each layer, and beside the statuses its number of heads of each. Hovering shows ‖g_a a‖ and
    ‖g_m m‖, the vectors as they act at inference.

    Args:
        run: a Run with gates at ``site``.
        rule: when a gate counts as open (see :mod:`jola_interp.selection`).
        site: ``heads`` or ``mlp``.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an edit without gates at ``site``, a rule outside the grammar, or an unknown renderer.
    """
    require(renderer, width)
    return sheet(head_maps(run, rule, site), renderer, width)


def compare_heads(
    run_a: Run,
    run_b: Run,
    rule: str = selection.DEFAULT_RULE,
    site: Site = "heads",
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """The gates of two Runs below each other, then P(open) of B − A, and which of them selects each head.

    Two seeds of one recipe show what of a selection stays; the notes have the overlap of both sets beside chance.

    Args:
        run_a, run_b: Runs of one head shape with gates at ``site``.
        rule: when a gate counts as open (see :mod:`jola_interp.selection`).
        site: ``heads``, ``mlp`` or ``attention``.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: Runs of different head shapes or without a kind of gate in common, an edit without gates at
            ``site``, a rule outside the grammar, or an unknown renderer.
    """
    require(renderer, width)
    return sheet(compared(run_a, run_b, rule, site), renderer, width)


def gate_snapshots(
    run: Run,
    steps: Iterable[int] | None = None,
    site: Site = "heads",
    renderer: Renderer = "plotly",
    width: float | None = None,
) -> Any:
    """P(open) at a few steps of training: a row per kind of gate, a column per step (JoLA, Fig. 7).

    Args:
        run: a Run with gates at ``site``.
        steps: optimiser steps, each shown at the last record not after it; None is five, from the first to the last.
        site: ``heads`` or ``mlp``.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an edit without gates at ``site``, a step that was not recorded, or an unknown renderer.
    """
    require(renderer, width)
    return sheet(snapshots(run, steps, site), renderer, width)


def sheet(table: Sheet, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Draw any sheet of layer × head maps.

    Raises:
        ValueError: an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    if renderer == "plotly":
        from jola_interp.plots.screen_maps import draw_sheet

        return draw_sheet(table)
    from jola_interp.plots.printed_maps import draw_sheet as print_sheet

    return print_sheet(table, width or 6.75)
