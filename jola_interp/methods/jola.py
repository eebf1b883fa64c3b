"""JoLA and its ablations: one class with switches, each setting of them a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, get_args

from jola_interp.edits.base import Edit
from jola_interp.edits.jola import JoLA
from jola_interp.methods.table import Method
from jola_interp.models import Model
from jola_interp.schedules import PenaltyScheduleName

PAPER = "JoLA (arXiv 2502.01179)"
UNGATED: dict[str, Any] = {"gate_share": 1.0, "penalty_warmup": 0.0, "lr": 2e-2}
"""Training fields of an edit without gates: all steps count, and with no half-open gate to halve its steps a vector
takes the smaller learning rate (docs of the noise tax in :mod:`jola_interp.evidence.traps`)."""
HEADS, MLP = "blocks.L.attn.hook_z", "blocks.L.mlp.hook_out"


def jola(model: Model, sites: str | Iterable[str] = ("heads",), **switches: Any) -> Edit:
    """:class:`JoLA` for the model; several sites may be given as one text, with commas."""
    chosen: Any = sites.split(",") if isinstance(sites, str) else sites
    return JoLA(model.head_shape, sites=chosen, **switches)


def gated(
    name: str, equation: str, points: str, source: str, fixed: Mapping[str, Any] | None = None, **switches: Any
) -> Method:
    """An ablation that keeps its gates, and the preset's starting values for them but for its own ``switches``."""

    def build(model: Model, **start: Any) -> Edit:
        return jola(model, **{**start, **switches})

    return Method(name, equation, points, f"{PAPER} {source}", build, fixed=fixed or {}, preset_edit=True)


def ungated(name: str, equation: str, points: str, source: str, **switches: Any) -> Method:
    """An ablation without gates."""
    build = partial(jola, gates="none", **switches)
    return Method(name, equation, points, f"{PAPER} {source}", build, train=UNGATED)


def varied(name: str, what: str, source: str, fixed: Mapping[str, Any] | None = None, **switches: Any) -> Method:
    """JoLA with one setting of its own."""
    return gated(name, f"{EQUATION}, {what}", HEADS, source, fixed, **switches)


EQUATION = "z' = (1 + g_m·m) ⊙ z + g_a·a"
SWITCHES = {"gates": "separate", "operations": "both", "sites": "heads", "scope": "all", "units": "raw"}
JOLA = (dataclasses.replace(gated("jola", EQUATION, HEADS, "§3, eq. 4–7"), options=SWITCHES),)
SCHEDULES = tuple(
    varied(f"jola-lambda-{name}", f"λ {name}", "Table 8", {"penalty_schedule": name, "penalty_warmup": 0.0})
    for name in get_args(PenaltyScheduleName)
)
"""The λ schedules, each at the preset's ``penalty`` as its scale and without a warm-up of λ beside it."""
INFERENCE = (
    varied("jola-expected", "g = E[g] at inference", "§3.2", inference="expected"),
    varied("jola-point", "g = the point gate at inference", "(released code)", inference="point"),
    dataclasses.replace(
        varied("jola-hard", "g = 1 where P(open) > 1/2, else 0, at inference", "(not in the paper)", inference="hard"),
        note="under the preset selective this is jola itself",
    ),
)
SETTINGS = (
    varied("jola-slow-gates", "gate learning rate .05", "(not in the paper)", {"gate_lr": 0.05}),
    varied("jola-stop-on-loss", "early stopping with the penalty", "(released code)", {"stop_on": "loss"}),
)
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
        f"{EQUATION}, h likewise",
        f"{HEADS}, {MLP}",
        "Table 2, both with gates",
        sites=("heads", "mlp"),
    ),
    *SCHEDULES,
    *INFERENCE,
    *SETTINGS,
)
