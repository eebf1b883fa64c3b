"""The gallery of a Run as sections, each figure below its heading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jola_interp import plots
from jola_interp.analysis import GateSummary, NotMeasuredError
from jola_interp.analysis.summary import percent
from jola_interp.convergence import DECIDED_SHARE
from jola_interp.edits.base import Site
from jola_interp.report.page import figure, section

if TYPE_CHECKING:
    from jola_interp.runs import Run


def figures(run: Run, summaries: Mapping[Site, GateSummary]) -> str:
    """The gallery of the heads; beside it the gates of other sites. Controls stand with the evidence."""
    parts = []
    for entry, drawn in plots.gallery(run):
        if entry.name == "controls":
            continue
        before = undecided_note(summaries["heads"]) if entry.name == "heads" else ""
        parts.append(figure(f"figure-{entry.name}", entry.heading, drawn, before, entry.see))
    for site, summary in summaries.items():
        if site != "heads":
            parts.append(_of_site(run, site, summary))
    return "".join([*parts, _tokens(run)])


def _of_site(run: Run, site: Site, summary: GateSummary) -> str:
    found = figure(f"heads-{site}", f"Gates ({site})", plots.heads(run, site=site), undecided_note(summary))
    if not len(run.gates):
        return found
    snapshots, curves = plots.gate_snapshots(run, site=site), plots.gate_trajectories(run, site=site)
    found += figure(f"snapshots-{site}", f"Gates over training ({site})", snapshots)
    return found + figure(f"trajectories-{site}", f"Every gate's path ({site})", curves)


def _tokens(run: Run) -> str:
    """The rows whose tokens were measured."""
    try:
        strips = [plots.token_strip(run, of=of) for of in ("logp", "shift")]
    except NotMeasuredError:
        return ""
    return section("Token by token", "".join(strip.fragment for strip in strips))


def undecided_note(summary: GateSummary) -> str:
    """Said beside the map, where it can't be overlooked: selection by undecided gates is none."""
    if summary.decided_share >= DECIDED_SHARE:
        return ""
    return (
        f'<p class="warning"><strong>Only {percent(summary.decided_share)} of the gates have decided.</strong> '
        f"{summary.gates - summary.decided} of {summary.gates} are neither open nor shut (hatched). An undecided gate "
        "is not a selected head: read the map as a state of training, not as a result. More steps or a higher "
        "<code>gate_lr</code> let gates decide.</p>"
    )
