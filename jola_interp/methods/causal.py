"""Causal head gating, the recipe: how its gates are fitted, wherever they are fitted.

    loss = NLL(answers) + λ · mean over heads of clip(θ),  g = σ(θ)       G⁻: the pressure to close

First without a penalty, then from there under the pressure. Taken from the paper: λ = .1, starts from U(0, 1), a shared
first fit, learning rates .1 and then .5. Chosen here: learning rates that fall to 0 (there to .01 and .1).

Source: Nam et al. 2025 (arXiv 2505.13737), eq. 1, §6.2.
"""

from __future__ import annotations

from typing import Any, cast

from jola_interp.edits.head_gates import HeadGates
from jola_interp.methods.setup import Setup

PENALTY = 0.1
"""λ of both pressures (§6.2)."""
START_LR, LR = 0.1, 0.5
"""Peak learning rates of the fit without a penalty and of those with one (§6.2)."""


def recipe(penalty: float = PENALTY, rate: float = LR) -> dict[str, Any]:
    """Training fields of one fit: the paper's optimiser (§6.2), the last gates rather than the best epoch's.

    The rows, their wrapping, the batch size and the number of steps are the caller's.
    """
    kept = {"patience": None, "restore_best": False, "stop_on": "ce"}
    adam = {"adam_betas": (0.9, 0.999), "adam_epsilon": 1e-8, "weight_decay": 0.0, "clip": 1.0, "warmup": 0.0}
    gates = {"gate_lr": rate, "lr_schedule": "linear", "gate_lr_schedule": None, "gate_share": 1.0}
    price: dict[str, Any] = {"penalty_form": "mean", "penalty_schedule": "constant", "penalty_warmup": 0.0}
    return {**kept, **adam, **gates, **price, "penalty": penalty, "multiplicative_weight": 1.0}


def closing(setup: Setup) -> HeadGates:
    """Gates as the fit without a penalty leaves them, ready for the pressure to close. One training, ``gates``."""
    start = setup.train(HeadGates(setup.model.head_shape), "gates", **recipe(0.0, START_LR))
    return HeadGates(setup.model.head_shape, pressure="close").load_tensors(start.edit.tensors())


def closed(setup: Setup) -> HeadGates:
    """Gates fitted under the pressure to close (G⁻). Two trainings, ``gates`` and ``closing``."""
    return cast(HeadGates, setup.train(closing(setup), "closing", **recipe()).edit)
