"""LoFiT: find K heads by scaling all of them, then train an offset on those, from scratch."""

from __future__ import annotations

from functools import partial

from jola_interp.methods.choosing import L1, K, first_heads, norm_heads, on_chosen
from jola_interp.methods.jola import HEADS, UNGATED
from jola_interp.methods.table import Method

OFFSETS = {**UNGATED, "lr": 1e-2, "lr_ratio": 1.0}
"""Training fields of its second step."""
LOFIT = (
    Method(
        "lofit",
        "z' = z + v on K heads",
        HEADS,
        "LoFiT (arXiv 2406.01563), §3",
        partial(first_heads, operations="add"),
        partial(on_chosen, norm_heads, operations="add"),
        options={"k": K, "l1": L1},
        train=OFFSETS,
        note="two trainings; heads by ‖A‖₂ of z' = (1 + A) ⊙ z under CE + l1·‖A‖₁, which is the first",
    ),
)
