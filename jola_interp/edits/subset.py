"""Differentiable subset pruning: exactly K heads have their gate open, which K is learnt with the edit itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jola_interp import gates as hardconcrete
from jola_interp.edits.base import HeadShape, Kind, Noise
from jola_interp.edits.jola import InferenceGate, JoLA, Operation, SiteEdit

TEMPERATURE = 0.5
"""τ: see :func:`relaxed_top_k`."""
_OPERATIONS: tuple[Operation, ...] = ("additive", "multiplicative")
_GATE: Kind = "shared"
_TAKEN = 1 - 1e-10  # an item of which so much is taken is out, whatever rounding leaves of it
_FAR = -1e4


def check_k(k: object, total: int) -> int:
    """``k``, if so many heads can be chosen out of ``total``. Raises ValueError, which names both, if not."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= total:
        raise ValueError(f"k must be an integer from 1 to {total}, the number of heads to choose from; got {k!r}")
    return k


def top_k(scores: Float[Tensor, " item"], k: int) -> Float[Tensor, " item"]:
    """1 for the ``k`` largest scores, the first of equal ones, and 0 for the others."""
    return torch.zeros_like(scores).index_fill(0, scores.argsort(descending=True, stable=True)[:k], 1.0)


def relaxed_top_k(scores: Float[Tensor, " item"], k: int, temperature: float) -> Float[Tensor, " item"]:
    """g_K of  g_{j+1} = g_j + softmax((r + log(1 − g_j))/τ),  g_0 = 0,  r = scores.

    Each softmax takes one item; what has been taken of each by then is subtracted in log space. K of them sum to K and
    tend to :func:`top_k` as τ → 0. With Gumbel noise on the scores (:func:`gumbel`) it is a relaxed draw of K without
    replacement.

    The paper, after Xie and Ermon, has log Π(1 − p_i) over the softmaxes p_i so far where log(1 − Σ p_i) stands here.
    That takes the same items several times over: drawing 32 of 270 equal ones at τ = .5, single gates reach 5, here
    1.01. An item that is taken entirely is out, also at τ ≥ 1.

    Args:
        scores: r; the arithmetic is in float64.
        k: how many to take, at most as many as there are.
        temperature: τ > 0. At 1/2 gates exceed 1 hardly, and only where near ties stand far above the rest; at others
            more do. Below .1 the gradient at near ties grows without bound.

    Source: Li, Cotterell, Sachan 2021 (arXiv 2108.04657); Xie and Ermon 2019 (arXiv 1901.10517).
    """
    scaled = scores.double() / temperature
    taken = torch.zeros_like(scaled)
    for _ in range(k):
        left = torch.log1p(-taken.clamp(max=_TAKEN)).masked_fill(taken > _TAKEN, _FAR)
        taken = taken + torch.add(scaled, left, alpha=1 / temperature).softmax(0)
    return taken.to(scores.dtype)


def gumbel(uniform: Float[Tensor, "*items"]) -> Float[Tensor, "*items"]:
    """−log(−log u), the noise whose top K is a draw of K without replacement."""
    epsilon = hardconcrete.EPSILON
    return -torch.log(-torch.log(epsilon + (1 - 2 * epsilon) * uniform))


class SubsetSite(SiteEdit):
    """Vectors with one gate a head for both operations: a relaxed top K of w where drawn, else the hard one."""

    def __init__(self, mask: Bool[Tensor, "layer unit"], width: int, k: int, temperature: float):
        super().__init__(mask, width, _OPERATIONS, "none")
        self.gates = "shared"  # so that vectors are multiplied by what gate_values gives
        self.k, self.temperature = k, temperature
        self.logits = nn.Parameter(torch.zeros(mask.shape))

    def gate_of(self, operation: Operation) -> Kind:  # noqa: ARG002
        return _GATE

    def gate_values(self, inference: InferenceGate, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """The one gate of every head [layer, unit]. K small steps one after the other: on the CPU, wherever w is."""
        scores = self.logits[self.mask]
        if _GATE in draws:
            noisy = scores.cpu() + gumbel(draws[_GATE][self.mask].cpu())
            values = relaxed_top_k(noisy, self.k, self.temperature).to(scores.device)
        else:
            values = top_k(scores, self.k)
        return {_GATE: torch.zeros_like(self.logits).masked_scatter(self.mask, values)}


class Subset(JoLA):
    """z' = (1 + g·m) ⊙ z + g·a, g the top K of one logit w a head: exactly K heads are edited, whatever they cost.

    In training g is the relaxed top K of w + Gumbel noise, one draw per optimiser step; at inference 1 on the K heads
    with the largest w and 0 elsewhere. Gates are no HardConcrete ones and have no log α, so P(open) and the rules of
    :mod:`jola_interp.selection` do not apply: read them with :meth:`chosen`. There is no penalty, K takes its place.
    Parameters: L·H·(2·d_head + 1).

    The temperature is constant, where the paper lowers it; ``gate_share`` of the training configuration takes the place
    of that: it says from when on the K heads stand and only their vectors train.

    Args:
        shape: the model's head shape.
        k: how many heads act.
        temperature: τ of the relaxed top K (:func:`relaxed_top_k`).
        layers: the layers to choose from; None is all.
        heads: the heads to choose from, as "L3H7" or (3, 7); None is all.
        init_std: standard deviation of the starting vectors. w starts at 0: no head is preferred.

    Raises:
        ValueError: more heads to choose than there are, a temperature that is no positive number, a layer or head
            outside the model.

    Source: Li, Cotterell, Sachan 2021 (arXiv 2108.04657), joint pruning, with JoLA's edit in place of the head itself.
    """

    type_name: ClassVar[str] = "subset"

    def __init__(
        self,
        shape: HeadShape,
        *,
        k: int,
        temperature: float = TEMPERATURE,
        layers: Iterable[int] | None = None,
        heads: Iterable[str | tuple[int, int]] | None = None,
        init_std: float = 1e-3,
    ):
        super().__init__(shape, gates="none", layers=layers, heads=heads, init_std=init_std)
        mask = self.site("heads").mask
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number above 0; got {temperature!r}")
        self.k, self.temperature = check_k(k, int(mask.sum())), temperature
        self.sites["heads"] = SubsetSite(mask, shape.d_head, k, temperature)

    @property
    def logits(self) -> nn.Parameter:
        """w [layer, head]."""
        return cast(SubsetSite, self.site("heads")).logits

    @torch.no_grad()
    def chosen(self) -> list[tuple[int, int]]:
        """The K heads that act at inference, by layer and head, the largest w first."""
        scores = self.logits.masked_fill(~self.site("heads").mask, -torch.inf).flatten()
        order = scores.argsort(descending=True, stable=True)[: self.k].tolist()
        return [divmod(int(place), self.shape.heads) for place in order]

    def initialise(self, generator: torch.Generator) -> Subset:
        """m, a ~ N(0, init_std²), w = 0."""
        super().initialise(generator)
        self.logits.data.zero_()
        return self

    def draw(self, generator: torch.Generator) -> Noise:
        return {("heads", _GATE): hardconcrete.uniform_like(self.logits.detach(), generator)}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {**super().parameter_groups(), "gates": [self.logits]}

    def n_parameters(self) -> int:
        return super().n_parameters() + int(self.site("heads").mask.sum())

    def settings(self) -> dict[str, Any]:
        """The switches. Which heads can be chosen is not among them: that is the stored ``mask``."""
        return {"k": self.k, "temperature": self.temperature, "init_std": self.init_std}

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "logits.heads": self.logits.detach()}
