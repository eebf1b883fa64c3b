"""Training as curves: gates and losses over optimiser steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jola_interp.analysis import losses, trajectories
from jola_interp.analysis.summary import gates_at
from jola_interp.edits.base import Site
from jola_interp.plots.style import Renderer, require

if TYPE_CHECKING:
    from jola_interp.runs import Run


def gate_trajectories(
    run: Run, top: int = 6, site: Site = "heads", renderer: Renderer = "plotly", width: float | None = None
) -> Any:
    """P(open) of every gate over the steps, one panel per kind; the gates most open at the end are named.

    Args:
        run: a Run with gates at ``site``.
        top: how many gates of each kind to name.
        site: ``heads`` or ``mlp``.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: an edit without gates at ``site``, a negative ``top``, or an unknown renderer.
    """
    require(renderer, width)
    tables = [trajectories(run, kind, top, site) for kind in gates_at(run, site)]  # type: ignore[arg-type]
    if renderer == "plotly":
        from jola_interp.plots.screen_curves import draw_trajectories

        return draw_trajectories(tables)
    from jola_interp.plots.printed_curves import draw_trajectories as print_trajectories

    return print_trajectories(tables, width or 6.75)


def loss(run: Run, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Cross-entropy of training and validation with the penalty; below it Σ P(open), and λ where it moves.

    Args:
        run: any Run that trained for a step.
        renderer: ``plotly`` (interactive) or ``matplotlib`` (for print).
        width: inches, ``matplotlib`` only; None is 6.75. A column is 3.25.

    Returns:
        A plotly or matplotlib Figure.

    Raises:
        ValueError: no training step was logged, or an unknown renderer.
    """
    require(renderer, width)
    table = losses(run)
    if renderer == "plotly":
        from jola_interp.plots.screen_curves import draw_losses

        return draw_losses(table)
    from jola_interp.plots.printed_curves import draw_losses as print_losses

    return print_losses(table, width or 6.75)
