"""Figures of a Run: interactive (plotly) or for print (matplotlib), drawn from the same tables.

A function returns its figure and never shows it; :func:`save` writes it.
"""

from jola_interp.plots.curves import gate_trajectories, loss
from jola_interp.plots.evidence import controls
from jola_interp.plots.files import save
from jola_interp.plots.maps import gate_snapshots, heads, sheet

__all__ = ["controls", "gate_snapshots", "gate_trajectories", "heads", "loss", "save", "sheet"]
