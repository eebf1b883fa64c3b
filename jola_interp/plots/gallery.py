"""Every figure of a Run by name: what a report shows, and what ``make figures`` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jola_interp._log import logger
from jola_interp.analysis.tables import NotMeasuredError
from jola_interp.edits.jola import JoLA
from jola_interp.plots.curves import gate_trajectories, loss
from jola_interp.plots.effects import alone_against_out, effect_map, effects_against, keep_drop
from jola_interp.plots.evidence import controls
from jola_interp.plots.maps import gate_snapshots, heads
from jola_interp.plots.profile import budget, closing, gate_gap, layer_profile, strip, thresholds
from jola_interp.plots.readout import attribution_map, lens_against_truth, readout
from jola_interp.plots.shifts import layer_shifts, shift_kinds, shift_maps, shift_pca, shift_positions
from jola_interp.plots.style import Renderer
from jola_interp.plots.usage import effective_size, uses, uses_by_layer

if TYPE_CHECKING:
    from jola_interp.runs import Run


@dataclass(frozen=True)
class Entry:
    """One figure.

    Attributes:
        name: of its file.
        heading: above it.
        see: what to see in it.
        draw: the function of ``jola_interp.plots``; it takes a Run, ``renderer`` and ``width``.
    """

    name: str
    heading: str
    see: str
    draw: Callable[..., Any]


GALLERY: tuple[Entry, ...] = (
    Entry("heads", "Gates", "P(open) of each gate and how each head is used; hatched gates have not decided", heads),
    Entry(
        "effective_size",
        "What open gates write",
        "P(open) beside the size of what is written: an open gate may stand before a vector that is nearly 0",
        effective_size,
    ),
    Entry(
        "gate_snapshots",
        "Gates over training",
        "the gates at five steps (the layout of the paper's Fig. 7, but P(open))",
        gate_snapshots,
    ),
    Entry(
        "gate_trajectories",
        "Every gate's path",
        "each gate's P(open), the most open ones in colour, and how far a gate could have gone",
        gate_trajectories,
    ),
    Entry("strip", "Every gate, every step", "a row for each head", strip),
    Entry("closing", "When gates decide", "how many gates have decided, step by step", closing),
    Entry(
        "gate_gap",
        "Training and inference gates",
        "cross-entropy under sampled, expected, point and hard gates",
        gate_gap,
    ),
    Entry("loss", "Loss", "cross-entropy, penalty and the expected number of open gates", loss),
    Entry("budget", "The budget over training", "how many gates are open, expected and hard, with λ", budget),
    Entry(
        "layer_profile",
        "Heads by layer",
        "selected heads by layer, beside as many drawn at random",
        layer_profile,
    ),
    Entry(
        "thresholds",
        "How many heads, at which threshold",
        "counts over the threshold; the usual rules are marked",
        thresholds,
    ),
    Entry("uses", "Additive against multiplicative", "gates, sizes and losses of both kinds, head by head", uses),
    Entry("uses_by_layer", "Additive and multiplicative by layer", "counts beside sizes", uses_by_layer),
    Entry(
        "shift_maps",
        "Activation shifts",
        "‖Δz‖/‖z‖ by head and class of token, the first token apart",
        shift_maps,
    ),
    Entry(
        "layer_shifts",
        "Shifts in the residual stream",
        "what the heads of a layer write together, local and total",
        layer_shifts,
    ),
    Entry("shift_positions", "Shifts by position", "where in the text activations move", shift_positions),
    Entry("shift_kinds", "Shifts by kind of token", "at which tokens activations move", shift_kinds),
    Entry(
        "shift_pca",
        "Shifts in the plane",
        "base and edited activations of the heads that move most for their size, on two components",
        shift_pca,
    ),
    Entry(
        "readout",
        "What offsets write",
        "tokens that an offset writes, where the lens agrees with the true change",
        readout,
    ),
    Entry(
        "lens_against_truth",
        "Can the lens be trusted?",
        "correlation of the lens with the true change of the logits",
        lens_against_truth,
    ),
    Entry(
        "attribution_map",
        "Direct logit attribution",
        "what each head adds to the task's contrast",
        attribution_map,
    ),
    Entry("effect_map", "Leave one out", "what the answers lose without one gate", effect_map),
    Entry(
        "effects_against",
        "Is P(open) faithful?",
        "exact effects against P(open), size and gradient",
        effects_against,
    ),
    Entry("alone_against_out", "Alone and left out", "redundant gates lie above the diagonal", alone_against_out),
    Entry(
        "keep_drop",
        "How many heads keep the gain?",
        "keep-top-k and drop-top-k beside random orders and refits",
        keep_drop,
    ),
    Entry("controls", "Gains beside their controls", "the gain beside every null of the evidence card", controls),
)
"""In the order of a report."""


def gallery(run: Run, renderer: Renderer = "plotly", width: float | None = None) -> Iterator[tuple[Entry, Any]]:
    """The figures that can be drawn of a Run, one after the other; what was not measured is left out.

    ``ji.analyse(run)`` and the evidence card measure what is missing. All of it is about JoLA's gates and vectors, so
    there is nothing to draw of another edit.
    """
    for entry in GALLERY if run.edit.type_name == JoLA.type_name else ():
        try:
            figure = entry.draw(run, renderer=renderer, width=width)
        except NotMeasuredError:
            continue
        except ValueError as error:  # not there to be drawn: an edit without gates, a task without a contrast
            logger.debug("gallery: no %s: %s", entry.name, error)
            continue
        yield entry, figure
