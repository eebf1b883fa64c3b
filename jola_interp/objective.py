"""What training minimises: cross-entropy on the answers plus λ times the gates' penalty."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jola_interp.batching import Batch, answer_losses
from jola_interp.edits.base import Edit, Kind, PenaltyForm
from jola_interp.models import Model
from jola_interp.schedules import PenaltySchedule


def cross_entropy(model: Model, batch: Batch) -> Float[Tensor, ""]:
    """Σ −log p over the answer tokens of a batch (a sum, so that micro-batches add up exactly)."""
    logits = model.logits(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask)
    return answer_losses(logits, batch.labels).sum()


class Objective:
    """loss = CE + Σ_k weight_k(λ) · penalty_k, over the kinds k of gates.

        mean        weight_a = λ·w_a, weight_m = λ·w_m      (JoLA §3.3 with one λ, divided by the number of gates)
        reference   weight_a = λ, weight_m = 1 − λ, and no penalty at all where λ = 0      (the released code)

    A shared gate is weighted as an additive one.

    Args:
        form: which of the two; it also chooses the penalty's own normalisation (:meth:`Edit.penalty`).
        schedule: how λ moves; :meth:`tick` moves it on.
        kind_weights: w_a and w_m.
    """

    def __init__(self, form: PenaltyForm, schedule: PenaltySchedule, kind_weights: tuple[float, float] = (1.0, 1.0)):
        self.form, self.schedule, self.kind_weights = form, schedule, kind_weights

    def weights(self) -> dict[Kind, float]:
        """Kind of gate to the weight of its penalty, now."""
        value = self.schedule.value()
        if self.form == "reference":
            rest = 1.0 - value if value else 0.0
            return {"additive": value, "multiplicative": rest, "shared": value}
        additive, multiplicative = self.kind_weights
        return {
            "additive": value * additive,
            "multiplicative": value * multiplicative,
            "shared": value * additive,
        }

    def penalty(self, edit: Edit) -> Float[Tensor, ""]:
        """Σ_k weight_k · penalty_k; 0 for an edit without gates."""
        weights = self.weights()
        terms = [weights[kind] * term for kind, term in edit.penalty(self.form).items() if weights[kind]]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def tick(self, loss: float) -> None:
        """One loss has been computed: move λ on."""
        self.schedule.tick(loss)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs."""
        return self.schedule.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self.schedule.restore(state)
