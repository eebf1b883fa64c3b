"""A budget on heads: λ is learned so that K heads are open, and where gates are fixed exactly K are kept.

    S_t     = Σ_heads 1 − Π_kinds (1 − P(open))             how many heads are open, smoothly (one kind: Σ P)
    K_t     = n·(K/n)^w,  w = x²(3 − 2x)                    falls from all n heads to K, x = t/annealing up to 1
    e_t     = ln(S_t/K_t), within ±1                        what λ is to make 0
    λ_t     = s·sinh(u_t + κ·e_t)                           the weight of JoLA's own penalty in step t; s is `penalty`
    u_{t+1} = u_t + η·e_t,  u_0 = 0                         ascent on the multiplier

Why it is made so:

The penalty stays JoLA's, in which every gate pays, and only its price is steered: where S rests at K the edit is one of
those that JoLA has at constant λ, namely that with K heads. Under λ·(S − K) instead a head's second gate would cost
nothing once its first is open.

The price that leaves 4 heads of 270 is orders of magnitude above the one that leaves 128, and nothing tells it
beforehand. So the error is a ratio, e = ln(S/K), and the ascent is on u = arsinh(λ/s) (mirror ascent with the
hypentropy of Ghai, Hazan, Singer 2019, arXiv 1902.01903): λ moves by amounts near 0 and by factors away from it. It may
be negative. A gate that is shut is hardly ever drawn open and so gets no gradient by which it could come back; below K
gates are paid for being open, before they are lost.

κ·e is the proportional part (the quadratic term of an augmented Lagrangian; Stooke, Achiam, Abbeel 2020, arXiv
2007.03964). AdamW carries a gate on for some ten steps after its price is gone, and u alone would overshoot by that.
η falls with the gates' learning rate, because the ascent must not be faster than what it steers.

The target falls slowly at first, while the vectors are still too small to say which head is worth its price, and slowly
at last. Until the cut log α is held at or below ln 11, where the point gate is 1. The penalty's gradient goes with
P(1 − P), which at +10 is a two-thousandth of what it is there: λ would have to grow by as much to reach a gate that has
run off, and those that ran first would be kept instead of those that are worth most.

The cut keeps the K heads with the largest 1 − Π (1 − P), of each the kinds whose inference gate is open, at least the
likelier one, and shuts all other gates. log α becomes 12 + P for what is kept and −13 + P for what is shut, P being
P(open) before: hard, point and expected gates then agree within 10⁻⁵, and rules such as ``top=8:p_open`` still find the
order in which heads were open. Every gate counts as decided from then on, by construction.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from jola_interp import gates
from jola_interp.edits.jola import InferenceGate, JoLA, SiteEdit

if TYPE_CHECKING:
    from jola_interp.edits.base import Edit

ALLOWED = "an integer ≥ 1 or a share between 0 and 1"
"""What a target may be."""
RATE = 0.2
"""η, at a learning rate of the gates of 1 or more; less in proportion below."""
GAIN = 5.0
"""κ."""
MOST = 8.0
"""Largest |u| and |u + κ·e|: |λ| ≤ 1490·s."""
LEAST = 1e-6
"""The least S that ln S is taken of."""
ANNEAL = 0.6
"""The share of the gates' steps over which the target falls where no warm-up of λ is given."""
CEILING = -gates.LOG_ALPHA_CLOSED
"""ln 11: log α is held at or below it until the cut. P(open) is .960 there."""
FAR = 12.0
"""|log α| of every gate after the cut, at least; 13 at most."""


def is_target(value: object) -> bool:
    """Whether it is a whole number ≥ 1 or a share between 0 and 1; True is neither."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return 0 < value < 1 or value >= 1 and float(value).is_integer()


def heads_to_keep(edit: Edit, target: float | None, name: str = "target_heads") -> int | None:
    """K for a ``target_heads``: itself, or a share below 1 of the heads that ``edit`` can act on. None is none.

    Raises:
        ValueError: no target; no gates on heads with a log α; an edit that also acts elsewhere; K below 1 or above the
            number of those heads. ``name`` is what the message calls the target.
    """
    if target is None:
        return None
    if not is_target(target):
        raise ValueError(f"{name} must be {ALLOWED}; got {target!r}")
    sites = {site for site, _ in edit.log_alphas()}
    if not isinstance(edit, JoLA) or "heads" not in sites:
        raise ValueError(f"{name} needs JoLA's gates on heads; got {target} with an edit that has none")
    if other := sorted(set(edit.masks()) - {"heads"}):
        raise ValueError(f"{name} counts heads; got {target} with an edit that also acts at {', '.join(other)}")
    total = int(edit.masks()["heads"].sum())
    kept = round(target * total) if target < 1 else int(target)
    if not 1 <= kept <= total:
        given = f"{target}" if target >= 1 else f"{target}, which is {kept}"
        raise ValueError(f"{name} must be from 1 to {total}, the heads that this edit can act on; got {given}")
    return kept


class HeadBudget:
    """λ_t = s·sinh(u_t + κ·e_t), the multiplier that steers the smooth number of open heads to K (see the module).

    It stands where a :class:`PenaltySchedule` would, but moves with what :meth:`observe` is told, not with the loss.

    Args:
        heads: K.
        total: n, the heads that the edit can act on.
        scale: s > 0, the λ around which the ascent turns from amounts to factors.
        anneal_steps: over how many steps the target falls to K; 0 is none.
        gate_lr: peak learning rate of the gates.
    """

    def __init__(self, heads: int, total: int, scale: float, anneal_steps: int, gate_lr: float):
        self.heads, self.total, self.scale, self.anneal_steps = heads, total, scale, anneal_steps
        self.rate = RATE * min(1.0, gate_lr)
        self.calls, self.u, self.weight = 0, 0.0, 0.0

    @property
    def target(self) -> float:
        """K_t, of the step that is observed next."""
        x = min(1.0, self.calls / self.anneal_steps) if self.anneal_steps else 1.0
        return float(self.total * (self.heads / self.total) ** (x * x * (3 - 2 * x)))

    def observe(self, count: float) -> float:
        """Take in S_t; λ_t is then :meth:`value`. Returns K_t."""
        target = self.target
        error = min(1.0, max(-1.0, math.log(max(count, LEAST) / target)))
        self.weight = self.scale * math.sinh(_within(self.u + GAIN * error))
        self.u = _within(self.u + self.rate * error)
        self.calls += 1
        return target

    def value(self) -> float:
        """λ of the step that was observed last."""
        return self.weight

    def tick(self, loss: float) -> None:
        """A loss has been computed, which says nothing of the number of heads."""

    def state(self) -> dict[str, float]:
        """What :meth:`restore` needs to go on from here."""
        return {"calls": self.calls, "u": self.u, "weight": self.weight}

    def restore(self, state: dict[str, float]) -> None:
        """Go on where :meth:`state` was taken."""
        self.calls, self.u, self.weight = int(state["calls"]), state["u"], state["weight"]


def _within(value: float) -> float:
    return min(MOST, max(-MOST, value))


@torch.no_grad()
def smooth_heads(part: SiteEdit) -> Float[Tensor, "layer head"]:
    """1 − Π_kinds (1 − P(open)), in float64 on the CPU; 0 where not editable."""
    opens = [gates.p_open(value.cpu().double()) for value in part.log_alpha.values()]
    closed = torch.stack([torch.log1p(-p) for p in opens]).sum(0)  # in logarithms, so that small ones stay apart
    return -torch.expm1(closed) * part.mask.cpu()


@torch.no_grad()
def hold(part: SiteEdit) -> None:
    """Hold every log α at or below ``CEILING``."""
    for value in part.log_alpha.values():
        value.clamp_(max=CEILING)


@torch.no_grad()
def cut(part: SiteEdit, heads: int, inference: InferenceGate) -> None:
    """Keep the ``heads`` likeliest heads, of each the open kinds and at least the likelier one, and shut the rest.

    Ties go by layer and head, and between kinds by their order.
    """
    scores = smooth_heads(part).masked_fill(~part.mask.cpu(), -1.0)
    order = scores.flatten().argsort(descending=True, stable=True)[:heads]
    kept = torch.zeros(scores.numel(), dtype=torch.bool).index_fill_(0, order, True).view_as(scores)
    kinds = list(part.log_alpha)
    values = torch.stack([part.log_alpha[kind].cpu() for kind in kinds])  # [kind, layer, head]
    likelier = torch.zeros_like(values, dtype=torch.bool).scatter_(0, values.argmax(0, keepdim=True), True)
    opened = kept & (likelier | (gates.INFERENCE[inference](values) > 0))
    decided = gates.p_open(values) + torch.where(opened, FAR, -FAR - 1)
    for kind, value in zip(kinds, decided, strict=True):
        part.log_alpha[kind].copy_(torch.where(part.mask.cpu(), value, 0.0))
