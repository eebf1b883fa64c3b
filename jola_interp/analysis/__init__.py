"""Questions to a Run, answered as tables. Nothing here draws; what needs the model is measured once and kept.

From a Run alone: summary, maps, profile, thresholds, budget, closing, gate gap, trajectories, losses, controls. With
the model and rows of a task (:func:`analyse`): shifts, usage, tokens, readout, effects, keep curves; attention on a
prompt.

From many Runs (:func:`selections`): overlaps between tasks, stability over seeds, shared heads, cosines of offsets,
transfer, curves over an axis of a study.
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
from jola_interp.analysis.offset_cosines import OffsetCosines, offset_cosines
from jola_interp.analysis.overlaps import Overlaps, overlaps
from jola_interp.analysis.profile import LayerProfile, Mark, Thresholds, layer_profile, thresholds
from jola_interp.analysis.ranking import KeepCurves, keep_curves
from jola_interp.analysis.readout import Readout, readout
from jola_interp.analysis.selections import Origin, Selections, selections
from jola_interp.analysis.shared_heads import SharedHeads, shared_heads
from jola_interp.analysis.shifts import Shifts, shifts
from jola_interp.analysis.stability import Stability, stability
from jola_interp.analysis.study_curves import StudyCurves
from jola_interp.analysis.study_curves import curves as study_curves
from jola_interp.analysis.summary import GateSummary, gate_summary, kept_step, undecided
from jola_interp.analysis.tables import NotMeasuredError, load_table
from jola_interp.analysis.tokens import Tokens, tokens, tokens_of
from jola_interp.analysis.transfer import Transfer, transfer
from jola_interp.analysis.usage import Usage, usage

__all__ = [
    "PARTS", "Agreement", "AttentionPatterns", "Budget", "Closing", "Control", "Controls", "Effects", "Fact",
    "Faithfulness", "Gate", "GateGap", "GateSummary", "GridMap", "Interplay", "KeepCurves", "LayerProfile", "Losses",
    "Mark", "MethodsTable", "NotMeasuredError", "OffsetCosines", "Origin", "Overlaps", "Readout", "Selections",
    "SharedHeads", "Sheet", "Shifts", "Stability", "StudyCurves", "Thresholds", "Tokens", "Trajectories", "Transfer",
    "Usage", "add_one_in", "analyse", "attention", "attention_sheet", "budget", "closing", "compare_heads",
    "compare_methods", "controls", "faithfulness", "gate_gap", "gate_maps", "gate_summary", "gradient_estimate",
    "head_curves", "head_facts", "head_maps", "interplay", "keep_curves", "kept_step", "layer_profile",
    "leave_one_out", "load_table", "losses", "offset_cosines", "overlaps", "readout", "selections", "shared_heads",
    "shifts", "snapshots", "stability", "status_map", "strips", "study_curves", "thresholds", "tokens", "tokens_of",
    "trajectories", "transfer", "undecided", "usage",
]  # fmt: skip
