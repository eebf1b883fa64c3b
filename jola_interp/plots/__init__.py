"""Figures of a Run: interactive (plotly) or for print (matplotlib), drawn from the same tables.

A function returns its figure and never shows it; :func:`save` writes it. :func:`gallery` draws all that a Run can show.
"""

from jola_interp.plots.attention import attention
from jola_interp.plots.charts import draw
from jola_interp.plots.curves import gate_trajectories, loss
from jola_interp.plots.effects import alone_against_out, effect_map, effects_against, keep_drop
from jola_interp.plots.evidence import controls
from jola_interp.plots.files import save
from jola_interp.plots.gallery import GALLERY, gallery
from jola_interp.plots.maps import compare_heads, gate_snapshots, heads, sheet
from jola_interp.plots.methods import heads_gain, methods
from jola_interp.plots.profile import budget, closing, gate_gap, layer_profile, strip, thresholds
from jola_interp.plots.readout import attribution_map, lens_against_truth, readout
from jola_interp.plots.shifts import layer_shifts, shift_kinds, shift_maps, shift_pca, shift_positions
from jola_interp.plots.studies import offset_matrix, overlap_matrix, selection_frequency, shared_map, transfer_matrix
from jola_interp.plots.study_charts import (
    offset_agreement,
    overlap_summary,
    stability_bars,
    study_curves,
    transfer_against_overlap,
)
from jola_interp.plots.tokens import token_strip
from jola_interp.plots.usage import effective_size, uses, uses_by_layer

__all__ = [
    "GALLERY", "alone_against_out", "attention", "attribution_map", "budget", "closing", "compare_heads", "controls",
    "draw", "effect_map", "effective_size", "effects_against", "gallery", "gate_gap", "gate_snapshots",
    "gate_trajectories", "heads", "heads_gain", "keep_drop", "layer_profile", "layer_shifts", "lens_against_truth",
    "loss", "methods", "offset_agreement", "offset_matrix", "overlap_matrix", "overlap_summary", "readout", "save",
    "selection_frequency", "shared_map", "sheet", "shift_kinds", "shift_maps", "shift_pca", "shift_positions",
    "stability_bars", "strip", "study_curves", "thresholds", "token_strip", "transfer_against_overlap",
    "transfer_matrix", "uses", "uses_by_layer",
]  # fmt: skip
