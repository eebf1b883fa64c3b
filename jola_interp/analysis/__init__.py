"""Questions to a Run, answered as tables. Nothing here draws; what needs the model is measured once and kept.

From a Run alone: summary, maps, profile, thresholds, budget, closing, gate gap, trajectories, losses, controls. With
the model and rows of a task (:func:`analyse`): shifts, usage, tokens, readout, effects, keep curves; attention on a
prompt.
"""

from jola_interp.analysis.attention import AttentionPatterns, attention, attention_sheet
from jola_interp.analysis.controls import Control, Controls, controls
from jola_interp.analysis.curves import Losses, Trajectories, losses, trajectories
from jola_interp.analysis.dynamics import Budget, Closing, budget, closing, strips
from jola_interp.analysis.effects import Effects, Gate, add_one_in, gradient_estimate, leave_one_out
from jola_interp.analysis.faithfulness import Agreement, Faithfulness, faithfulness
from jola_interp.analysis.gate_gap import GateGap, gate_gap
from jola_interp.analysis.gate_maps import compare_heads, gate_maps, head_maps, snapshots, status_map
from jola_interp.analysis.grids import GridMap, Sheet
from jola_interp.analysis.head import Fact, head_facts
from jola_interp.analysis.interplay import Interplay, interplay
from jola_interp.analysis.measured import PARTS, analyse
from jola_interp.analysis.methods_table import MethodsTable, compare_methods, head_curves
from jola_interp.analysis.profile import LayerProfile, Mark, Thresholds, layer_profile, thresholds
from jola_interp.analysis.ranking import KeepCurves, keep_curves
from jola_interp.analysis.readout import Readout, readout
from jola_interp.analysis.shifts import Shifts, shifts
from jola_interp.analysis.summary import GateSummary, gate_summary, kept_step, undecided
from jola_interp.analysis.tables import NotMeasuredError, load_table
from jola_interp.analysis.tokens import Tokens, tokens, tokens_of
from jola_interp.analysis.usage import Usage, usage

__all__ = [
    "PARTS", "Agreement", "AttentionPatterns", "Budget", "Closing", "Control", "Controls", "Effects", "Fact",
    "Faithfulness", "Gate", "GateGap", "GateSummary", "GridMap", "Interplay", "KeepCurves", "LayerProfile", "Losses",
    "Mark", "MethodsTable", "NotMeasuredError", "Readout", "Sheet", "Shifts", "Thresholds", "Tokens", "Trajectories",
    "Usage", "add_one_in", "analyse", "attention", "attention_sheet", "budget", "closing", "compare_heads",
    "compare_methods", "controls", "faithfulness", "gate_gap", "gate_maps", "gate_summary", "gradient_estimate",
    "head_curves", "head_facts", "head_maps", "interplay", "keep_curves", "kept_step", "layer_profile", "leave_one_out",
    "load_table", "losses", "readout", "shifts", "snapshots", "status_map", "strips", "thresholds", "tokens",
    "tokens_of", "trajectories", "undecided", "usage",
]  # fmt: skip
