"""ReFT: low-rank edits of the residual stream at the ends of the prompt, orthogonal (LoReFT) and direct (DiReFT)."""

from __future__ import annotations

from typing import Any

from jola_interp.edits.reft import ReFT
from jola_interp.methods.jola import UNGATED
from jola_interp.methods.table import Method
from jola_interp.models import Model

RESIDUAL = "blocks.L.hook_resid_post"
SOURCE = "ReFT (arXiv 2404.03592) §3.2"
OPTIONS: dict[str, Any] = {"r": 8, "p": 7, "s": 7, "shared": True, "layers": None, "start": "identity"}
TRAIN: dict[str, Any] = {**UNGATED, "lr": 9e-4}
NOTE = (
    "lr 9e-4 is the paper's, for thousands of steps; over a few hundred a larger one may be needed. No dropout (paper: "
    ".05). Starts at the model itself; start='linear' is the released code's."
)


def loreft(model: Model, **options: Any) -> ReFT:
    """LoReFT for the model."""
    return ReFT(model.head_shape, kind="loreft", **options)


def direft(model: Model, **options: Any) -> ReFT:
    """DiReFT for the model."""
    return ReFT(model.head_shape, kind="direft", **options)


REFT = (
    Method(
        "loreft",
        "h' = h + Rᵀ(W h + b − R h), R Rᵀ = I, at the first p and last s prompt tokens",
        RESIDUAL,
        f"{SOURCE}, eq. 2; the hidden states of JoLA (arXiv 2502.01179) Fig. 2 and Table 2",
        loreft,
        options=OPTIONS,
        train=TRAIN,
        note=NOTE,
    ),
    Method(
        "direft",
        "h' = h + W₂ᵀ(W₁ h + b), at the first p and last s prompt tokens",
        RESIDUAL,
        f"{SOURCE}, eq. 3",
        direft,
        options={**OPTIONS, "orthonormal": False},
        train=TRAIN,
        note=NOTE,
    ),
)
