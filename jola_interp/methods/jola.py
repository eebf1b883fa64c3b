"""JoLA and its ablations: one class with switches, each setting of them a name."""

from __future__ import annotations

from functools import partial
from typing import Any

from jola_interp.edits.base import Edit
from jola_interp.edits.jola import JoLA
from jola_interp.methods.table import Method
from jola_interp.models import Model

PAPER = "JoLA (arXiv 2502.01179)"
UNGATED: dict[str, Any] = {"gate_share": 1.0, "penalty_warmup": 0.0, "lr": 2e-2}
"""Training fields of an edit without gates: all steps count, and with no half-open gate to halve its steps a vector
takes the smaller learning rate (docs of the noise tax in :mod:`jola_interp.evidence.traps`)."""
HEADS, MLP = "blocks.L.attn.hook_z", "blocks.L.mlp.hook_out"


def jola(model: Model, **switches: Any) -> Edit:
    """:class:`JoLA` for the model."""
    return JoLA(model.head_shape, **switches)


def gated(name: str, equation: str, points: str, source: str, **switches: Any) -> Method:
    """An ablation that keeps its gates, and so the preset's starting values for them."""
    return Method(name, equation, points, f"{PAPER} {source}", partial(jola, **switches), preset_edit=True)


def ungated(name: str, equation: str, points: str, source: str, **switches: Any) -> Method:
    """An ablation without gates."""
    build = partial(jola, gates="none", **switches)
    return Method(name, equation, points, f"{PAPER} {source}", build, train=UNGATED)


JOLA = (gated("jola", "z' = (1 + g_m·m) ⊙ z + g_a·a", HEADS, "§3, eq. 4–7"),)
ABLATIONS = (
    gated("jola-shared-gate", "z' = (1 + g·m) ⊙ z + g·a", HEADS, "Fig. 5", gates="shared"),
    gated("jola-scale", "z' = (1 + g_m·m) ⊙ z", HEADS, "§5, no offset", operations="multiply"),
    gated("jola-offset", "z' = z + g_a·a", HEADS, "§5, no scaling", operations="add"),
    ungated("attention", "z' = (1 + m) ⊙ z + a", HEADS, "Table 2, attention without gates"),
    ungated("attention-scale", "z' = (1 + m) ⊙ z", HEADS, "§5 without gates", operations="multiply"),
    ungated("attention-offset", "z' = z + a", HEADS, "§5 without gates", operations="add"),
    ungated("mlp", "h' = (1 + m) ⊙ h + a", MLP, "Table 2, MLP without gates (= RED)", sites=("mlp",)),
    gated("mlp-gated", "h' = (1 + g_m·m) ⊙ h + g_a·a", MLP, "Table 2, MLP with gates", sites=("mlp",)),
    ungated(
        "attention-mlp",
        "z' = (1 + m) ⊙ z + a, h likewise",
        f"{HEADS}, {MLP}",
        "Table 2, both without gates",
        sites=("heads", "mlp"),
    ),
    gated(
        "attention-mlp-gated",
        "z' = (1 + g_m·m) ⊙ z + g_a·a, h likewise",
        f"{HEADS}, {MLP}",
        "Table 2, both with gates",
        sites=("heads", "mlp"),
    ),
)
