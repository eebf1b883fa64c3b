"""JoLA with a budget: K heads and no λ to choose."""

from __future__ import annotations

from jola_interp.budget import heads_to_keep
from jola_interp.config import preset
from jola_interp.edits.base import Edit
from jola_interp.edits.jola import JoLA
from jola_interp.methods.jola import EQUATION, HEADS, PAPER
from jola_interp.methods.setup import Setup
from jola_interp.methods.table import Method
from jola_interp.models import Model

K = 32


def gated_heads(model: Model, k: float = K, start: str = "selective") -> Edit:
    """JoLA as the preset ``start`` starts it, of which ``k`` heads (a share of them below 1) will be left.

    Raises:
        ValueError: ``k`` below 1 head or above the number of heads.
    """
    edit = JoLA(model.head_shape, **preset(start).edit)
    heads_to_keep(edit, k, "k")
    return edit


def with_target(setup: Setup, k: float = K) -> Edit:
    """:func:`gated_heads`, and ``target_heads`` for its training.

    Raises:
        ValueError: ``k`` outside its range, or a ``target_heads`` in the training fields that is another.
    """
    edit = gated_heads(setup.model, k, setup.preset)
    if setup.settings.target_heads not in (None, k):
        raise ValueError(f"target_heads is the method's own: k={k}; got {setup.settings.target_heads}")
    setup.fields["target_heads"] = k
    return edit


BUDGET = (
    Method(
        "jola-budget",
        f"{EQUATION}, λ learned, K heads open",
        HEADS,
        f"{PAPER} §3 under a budget (not in the paper)",
        gated_heads,
        with_target,
        options={"k": K},
        note="λ is a multiplier that steers the number of open heads; exactly K are kept where the gates are fixed",
    ),
)
