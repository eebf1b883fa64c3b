"""Did the gates decide? What must hold before anyone reads a selection off them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jola_interp import gates
from jola_interp.backends import attach
from jola_interp.batching import Batch, Encoded, batches_of, collate, pad_id
from jola_interp.edits.base import Kind, PenaltyForm
from jola_interp.edits.jola import InferenceGate, JoLA
from jola_interp.models import Model
from jola_interp.objective import AnswerTargets

if TYPE_CHECKING:
    from jola_interp.backends import Attachment, BackendName

FILE = "convergence.json"
UNDECIDED = (0.05, 0.95)
"""A gate with P(open) within these bounds, ends included, has not decided whether it is open or shut."""
DECIDED_SHARE = 0.95
"""The least share of decided gates of a converged Run."""
GATE_GAP = 0.01
"""The largest |CE(sampled) − CE(hard)| of a converged Run, in nats per answer token."""
MEAN_OF, BLOWN_UP = 5, 1.5
"""Training has blown up where the mean of so many losses is more than so many times each of the first."""
ROWS, DRAWS = 32, 4
"""Validation rows that are read, and gate draws on each."""


class NotConvergedWarning(UserWarning):
    """Heads are selected from gates that have not decided."""


@dataclass(frozen=True)
class Convergence:
    """Whether the gates of the kept edit have decided, and what that is judged by.

    Attributes:
        gates: how many there are.
        decided: those with P(open) < .05 or > .95.
        sum_gate_lr: Σ over the steps of the gates' learning rate: about how far a log α could travel at all.
        reach: the lowest P(open) that a gate could have reached from where gates start, σ(log α₀ − Σ lr + .79).
        ce: cross-entropy (nats per answer token) of ``rows`` validation rows with gates "sampled" (the mean of
            ``draws`` draws), "expected", "point" and "hard".
        sampled_se: standard error of CE(sampled) over the draws.
        stationarity: median of |∂CE/∂P + λ'|/λ' over the undecided gates, λ' = λ/gates being what a unit of P(open)
            costs; 0 at an optimum inside (0, 1). None where all gates have decided or λ is 0.
        rows, draws: see above.
    """

    gates: int
    decided: int
    sum_gate_lr: float
    reach: float
    ce: Mapping[str, float]
    sampled_se: float
    stationarity: float | None
    rows: int
    draws: int

    @property
    def decided_share(self) -> float:
        """decided/gates."""
        return self.decided / self.gates

    @property
    def gap(self) -> float:
        """CE(sampled) − CE(hard), in nats per answer token."""
        return self.ce["sampled"] - self.ce["hard"]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the Run has not converged, in words; empty if it has."""
        found = []
        if self.decided_share < DECIDED_SHARE:
            found.append(
                f"{self.decided} of {self.gates} gates ({100 * self.decided_share:.0f} %) are decided, not 95 %"
            )
        if abs(self.gap) > GATE_GAP:
            found.append(
                f"CE with sampled gates differs by {self.gap:+.3f} nat from CE with hard ones, not by ≤ {GATE_GAP}"
            )
        return tuple(found)

    @property
    def converged(self) -> bool:
        """At least 95 % of the gates decided, and |CE(sampled) − CE(hard)| ≤ .01 nat."""
        return not self.reasons

    def sentence(self) -> str:
        """The stamp, in words."""
        if not self.converged:
            return f"Not converged: {'; '.join(self.reasons)}."
        return (
            f"Converged: {self.decided} of {self.gates} gates decided, CE(sampled) − CE(hard) = {self.gap:+.4f} nat "
            f"({self.rows} validation rows, {self.draws} draws)."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the stamp included."""
        return {**asdict(self), "ce": dict(self.ce), "converged": self.converged, "reasons": list(self.reasons)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})


def decided(log_alpha: Float[np.ndarray, "*gates"]) -> Float[np.ndarray, "*gates"]:
    """P(open) < .05 or > .95, elementwise; False where log α is NaN."""
    values = gates.p_open(torch.from_numpy(np.ascontiguousarray(log_alpha))).numpy()
    return np.asarray((values < UNDECIDED[0]) | (values > UNDECIDED[1]))


def blown_up(losses: Sequence[float]) -> tuple[int, float] | None:
    """Where training lost what the model could do: the highest mean of five losses, half again any early one.

    Args:
        losses: cross-entropy of one logged step after the other; the first five are of the model nearly as it was.

    Returns:
        Its place among ``losses`` (the middle of the five) and the mean; None where nothing of the kind happened.
    """
    if len(losses) <= MEAN_OF:
        return None
    means = np.convolve(losses, np.full(MEAN_OF, 1 / MEAN_OF), mode="valid")
    top = int(means.argmax())
    return (top + MEAN_OF // 2, float(means[top])) if means[top] > BLOWN_UP * max(losses[:MEAN_OF]) else None


def measure(
    edit: JoLA,
    model: Model,
    rows: Sequence[Encoded],
    *,
    weights: Mapping[Kind, float],
    sum_gate_lr: float,
    seed: int,
    backend: BackendName,
    form: PenaltyForm = "mean",
    targets: AnswerTargets | None = None,
) -> Convergence:
    """Measure the gates of a trained edit on (at most ``ROWS``) validation rows.

    Args:
        edit: with gates; it is copied.
        model: without an edit.
        rows: encoded validation rows.
        weights: kind of gate to λ at the end of training.
        sum_gate_lr: see :class:`Convergence`.
        seed: of the gate draws.
        backend: how to reach the activations.
        form: of the penalty; the stationarity is told for "mean" only.
        targets: what CE is of; None is the answers.
    """
    probe = copy.deepcopy(edit).to(model.device).requires_grad_(True)
    pad = pad_id(model.tokenizer) if model.tokenizer is not None else 0
    chosen = list(rows[:ROWS])
    batches = [
        collate([chosen[i] for i in places], pad, model.device)
        for places in batches_of([len(row.ids) for row in chosen], 8)
    ]
    loss = _Loss(model, batches, targets or AnswerTargets())
    generator = torch.Generator().manual_seed(seed)
    with attach(probe, model, backend) as attached:
        ce = {name: loss.at_inference(probe, attached, name) for name in get_args(InferenceGate)}
        sampled = [loss.sampled(attached, generator) for _ in range(DRAWS)]
    log_alphas = [value for _, value in sorted(edit.log_alphas().items())]
    masks = [edit.masks()[site] for site, _ in sorted(edit.log_alphas())]
    values = np.concatenate([value[mask].cpu().numpy() for value, mask in zip(log_alphas, masks, strict=True)])
    lowest = gates.p_open(torch.tensor(edit.init_log_alpha - sum_gate_lr, dtype=torch.float64))
    return Convergence(
        gates=len(values),
        decided=int(decided(values).sum()),
        sum_gate_lr=float(sum_gate_lr),
        reach=float(lowest),
        ce={"sampled": float(np.mean(sampled)), **ce},
        sampled_se=float(np.std(sampled, ddof=1) / np.sqrt(DRAWS)),
        stationarity=_stationarity(probe, weights, len(values)) if form == "mean" else None,
        rows=len(chosen),
        draws=DRAWS,
    )


class _Loss:
    """Mean loss per answer token of fixed batches, under one kind of gate or another."""

    def __init__(self, model: Model, batches: Sequence[Batch], targets: AnswerTargets):
        self.model, self.batches, self.targets = model, batches, targets
        self.tokens = sum(batch.n_answer_tokens for batch in batches)

    @torch.no_grad()
    def at_inference(self, probe: JoLA, attached: Attachment, gate: InferenceGate) -> float:
        probe.inference = gate
        attached.clear()
        return sum(float(self.targets.loss(self.model, b, validation=True)) for b in self.batches) / self.tokens

    def sampled(self, attached: Attachment, generator: torch.Generator) -> float:
        """CE under one draw; its gradient adds up in the edit, over all draws to that of their mean."""
        attached.draw(generator)
        total = 0.0
        for batch in self.batches:
            loss = self.targets.loss(self.model, batch, validation=True) / self.tokens
            (loss / DRAWS).backward()
            total += loss.item()
        return total


def _stationarity(probe: JoLA, weights: Mapping[Kind, float], total: int) -> float | None:
    """∂CE/∂P = (∂CE/∂log α) / (P(1 − P)), since P(open) is a sigmoid of log α."""
    found: list[Tensor] = []
    for (site, kind), log_alpha in probe.log_alphas().items():
        gradient = probe.site(site).log_alpha[kind].grad
        price = weights[kind] / total
        if gradient is None or not price:
            continue
        p = gates.p_open(log_alpha)
        open_or_shut = (p < UNDECIDED[0]) | (p > UNDECIDED[1])
        chosen = probe.masks()[site] & ~open_or_shut
        found.append((gradient / (p * (1 - p)) + price)[chosen].abs() / price)
    values = torch.cat(found) if found else torch.zeros(0)
    return float(values.median()) if len(values) else None
