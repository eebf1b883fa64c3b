"""Questions to a Run, answered as tables: nothing here draws, and nothing here needs the model."""

from jola_interp.analysis.controls import Control, Controls, controls
from jola_interp.analysis.curves import Losses, Trajectories, losses, trajectories
from jola_interp.analysis.gate_maps import gate_maps, head_maps, snapshots, status_map
from jola_interp.analysis.grids import GridMap, Sheet
from jola_interp.analysis.summary import GateSummary, gate_summary, kept_step, undecided

__all__ = [
    "Control",
    "Controls",
    "GateSummary",
    "GridMap",
    "Losses",
    "Sheet",
    "Trajectories",
    "controls",
    "gate_maps",
    "gate_summary",
    "head_maps",
    "kept_step",
    "losses",
    "snapshots",
    "status_map",
    "trajectories",
    "undecided",
]
