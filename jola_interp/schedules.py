"""How λ and the learning rate move during training."""

from __future__ import annotations

import math
from typing import Literal, get_args

PenaltyScheduleName = Literal["constant", "linear", "cyclic", "performance", "exponential"]
LearningRateScheduleName = Literal["cosine", "linear", "constant"]

REFERENCE_PENALTY: dict[str, float] = {
    "constant": 4e-5,
    "linear": 0.2,
    "cyclic": 1.0,
    "performance": 0.1,
    "exponential": 0.1,
}
"""The ``penalty`` that gives each schedule of the released code."""
_FIRST_PREVIOUS_LOSS = 50.0  # the released code compares the first loss with this


class PenaltySchedule:
    """λ_k, the weight of the penalty at the k-th loss that is computed (the first has k = 0).

        constant     λ_k = penalty
        linear       λ_k = penalty · k / n_steps
        cyclic       λ_k = penalty · (1/2 + sin(2πk/20)/2), but λ_0 = penalty/10
        performance  λ_0 = penalty; λ_k = λ_{k−1} ± penalty/10 within [0, 10·penalty], up if the last loss was lower
                     than the one before it
        exponential  λ_k = penalty · exp(−k/100)

    Over the first ``warmup_steps`` losses λ_k is multiplied by k/warmup_steps, so that vectors can grow before gates
    are asked to pay.

    With ``REFERENCE_PENALTY`` these are the released code's schedules (JoLA Table 8), number for number.

    Args:
        name: which schedule.
        penalty: its scale, ≥ 0.
        n_steps: training steps in all (``linear`` only).
        warmup_steps: see above; 0 is none.

    Raises:
        ValueError: an unknown name, a negative penalty, or no steps.
    """

    def __init__(self, name: PenaltyScheduleName, penalty: float, n_steps: int, warmup_steps: int = 0):
        if name not in get_args(PenaltyScheduleName):
            raise ValueError(f"penalty_schedule must be one of {get_args(PenaltyScheduleName)}, got {name!r}")
        if penalty < 0 or n_steps < 1:
            raise ValueError(f"penalty must be ≥ 0 and n_steps ≥ 1, got {penalty} and {n_steps}")
        self.name, self.penalty, self.n_steps, self.warmup_steps = name, penalty, n_steps, warmup_steps
        self.calls = 0
        self.last_loss = _FIRST_PREVIOUS_LOSS
        self.performance_weight = penalty

    def value(self) -> float:
        """λ for the loss that is computed next."""
        return self._full() * min(1.0, self.calls / self.warmup_steps) if self.warmup_steps else self._full()

    def _full(self) -> float:
        """λ without its warm-up."""
        if self.name == "constant":
            return self.penalty
        if self.name == "linear":
            return self.penalty * (self.calls / self.n_steps)
        if self.name == "cyclic":
            wave = 0.5 + 0.5 * math.sin(2 * math.pi * (self.calls / 20))
            return self.penalty * (wave if self.calls else 0.1)
        if self.name == "performance":
            return self.performance_weight
        return self.penalty * math.exp(-0.01 * self.calls)

    def tick(self, loss: float) -> None:
        """Go on to the next λ, having seen ``loss`` (penalty included)."""
        self.calls += 1
        if self.name == "performance":
            change = self.penalty / 10 if loss < self.last_loss else -self.penalty / 10
            self.performance_weight = min(max(self.performance_weight + change, 0.0), 10 * self.penalty)
            self.last_loss = loss

    def state(self) -> dict[str, float]:
        """What :meth:`restore` needs to go on from here."""
        return {
            "calls": self.calls,
            "last_loss": self.last_loss,
            "performance_weight": self.performance_weight,
        }

    def restore(self, state: dict[str, float]) -> None:
        """Go on where :meth:`state` was taken."""
        self.calls = int(state["calls"])
        self.last_loss, self.performance_weight = state["last_loss"], state["performance_weight"]


def learning_rate_factor(name: LearningRateScheduleName, step: int, n_steps: int, warmup_steps: int) -> float:
    """Factor on the peak learning rate for optimiser step ``step`` (the first is 0).

    Rises linearly from 0 over ``warmup_steps``, as Hugging Face's schedules do, then ``cosine`` to 0, ``linear`` to 0,
    or ``constant``.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if name == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, n_steps - warmup_steps)
    if name == "linear":
        return max(0.0, 1.0 - progress)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
