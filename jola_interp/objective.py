"""What training minimises: cross-entropy on the answers (or KL from a teacher) plus λ times the gates' penalty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jola_interp.batching import IGNORED, Batch, Encoded, answer_losses, batches_of, collate, pad_id
from jola_interp.budget import HeadBudget
from jola_interp.edits.base import Edit, Kind, PenaltyForm
from jola_interp.models import Model
from jola_interp.schedules import PenaltySchedule


def cross_entropy(model: Model, batch: Batch) -> Float[Tensor, ""]:
    """Σ −log p over the answer tokens of a batch (a sum, so that micro-batches add up exactly)."""
    logits = model.logits(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask)
    return answer_losses(logits, batch.labels).sum()


class AnswerTargets:
    """Σ −log p(answer token): what training aims at unless there is a teacher."""

    def loss(self, model: Model, batch: Batch, validation: bool = False) -> Float[Tensor, ""]:  # noqa: ARG002
        """The batch's sum over its answer tokens. ``validation`` says which split its rows are of."""
        return cross_entropy(model, batch)


class TeacherTargets(AnswerTargets):
    """Σ KL(teacher ‖ model) over the answer tokens: 0 exactly where the model says what the teacher says.

    Made while the teacher's edit is live on the model, which it reads once over all rows. Its log-probabilities are
    kept in float32 whatever the model's dtype, since rounding them would give a perfect student a KL above 0: 4 bytes ×
    answer tokens × vocabulary, on the model's device.
    """

    @torch.no_grad()
    def __init__(self, model: Model, train: Sequence[Encoded], validation: Sequence[Encoded], batch_size: int = 16):
        self._train = self._read(model, train, batch_size)
        self._validation = self._read(model, validation, batch_size)

    def loss(self, model: Model, batch: Batch, validation: bool = False) -> Float[Tensor, ""]:
        logits = model.logits(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask)
        log_q = answer_logits(logits, batch).float().log_softmax(-1)  # [token, vocab]
        known = self._validation if validation else self._train
        log_p = torch.cat([known[row] for row in batch.rows]).to(log_q)
        return (log_p.exp() * (log_p - log_q)).sum()

    def _read(self, model: Model, rows: Sequence[Encoded], batch_size: int) -> dict[int, Tensor]:
        """Row to the teacher's log p [token, vocab]."""
        pad = pad_id(model.tokenizer) if model.tokenizer is not None else 0
        found: dict[int, Tensor] = {}
        for chosen in batches_of([len(row.ids) for row in rows], batch_size):
            batch = collate([rows[i] for i in chosen], pad, model.device)
            logits = model.logits(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask)
            log_p = answer_logits(logits, batch).float().log_softmax(-1)
            found |= dict(zip(batch.rows, log_p.split([rows[i].n_answer for i in chosen]), strict=True))
        return found


def answer_logits(logits: Float[Tensor, "batch kept vocab"], batch: Batch) -> Float[Tensor, "token vocab"]:
    """Logits that predict an answer token, row after row."""
    predictions = logits[:, -batch.labels.shape[1] - 1 : -1]
    return predictions[batch.labels != IGNORED]


class Objective:
    """loss = CE + Σ_k weight_k(λ) · penalty_k, over the kinds k of gates.

        mean        weight_a = λ·w_a, weight_m = λ·w_m      (JoLA §3.3 with one λ, divided by the number of gates)
        reference   weight_a = λ, weight_m = 1 − λ, and no penalty at all where λ = 0      (the released code)

    A shared gate is weighted as an additive one.

    Args:
        form: which of the two; it also chooses the penalty's own normalisation (:meth:`Edit.penalty`).
        schedule: how λ moves, by the steps (:meth:`tick` moves it on) or by the number of open heads.
        kind_weights: w_a and w_m.
    """

    def __init__(
        self,
        form: PenaltyForm,
        schedule: PenaltySchedule | HeadBudget,
        kind_weights: tuple[float, float] = (1.0, 1.0),
    ):
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
