"""Causal head gating: z' = g·z with one scalar g = σ(θ) per head: the model's own heads turned down, nothing added."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jola_interp.edits.base import Context, Edit, HeadShape, Kind, PenaltyForm, Site, parse_units, take_over

Pressure = Literal["close", "open"]
Clip = Literal["ahead", "both"]
CLIP = 4.0
"""|θ| beyond which the pressure ends (§6.2): it takes a gate to .018 or .982, only the task takes it further."""
OPEN = 20.0
"""A θ at which σ(θ) is 1 in float32, bit for bit."""
_EDGE = 1e-6
_KINDS = ("additive", "multiplicative")


class HeadGates(Edit):
    """z' = g·z, g = σ(θ) ∈ [0, 1], one θ per query head, the same at every token.

    In float32 g is exactly 1 (the identity, bit for bit) from θ = 17 on, and exactly 0 (the head removed) from θ = −104
    down. Gates do not draw and have no log α: they are plain sigmoids, so that P(open) and the rules of
    :mod:`jola_interp.selection` do not apply to them. Read them with :meth:`values`.

    Args:
        shape: the model's head shape.
        pressure: what the penalty does. ``close`` pushes every gate down, so that only what the task needs stays open
            (G⁻ of the paper); ``open`` pushes up, so that only what harms the task is closed (G⁺).
        heads: the heads that have a gate, as "L3H7" or (3, 7); None is all. The others are left as they are.
        start: the g at which all gates start; None draws each uniformly from (0, 1), as the paper does.
        clip: where the pressure ends. ``both``: where |θ| > 4 (the paper), so that a gate which starts or drifts beyond
            4 on the wrong side never feels it and counts as needed, or as interfering, for that alone. ``ahead``: only
            at the end that it pushes to.

    Raises:
        ValueError: an unknown pressure or clip, a start outside (0, 1), a head outside the model, or no head at all.

    Source: Nam et al. 2025 (arXiv 2505.13737), §3.1, eq. 1, §6.2.
    """

    type_name: ClassVar[str] = "head_gates"
    mask: Tensor
    share: Tensor

    def __init__(
        self,
        shape: HeadShape,
        *,
        pressure: Pressure = "close",
        heads: Iterable[str | tuple[int, int]] | None = None,
        start: float | None = None,
        clip: Clip = "ahead",
    ):
        super().__init__()
        _check_switches(pressure, start, clip)
        self.shape, self.pressure, self.start, self.clip = shape, pressure, start, clip
        mask = _gated(shape, heads)
        if not bool(mask.any()):
            raise ValueError("heads: no head is left to gate")
        self.register_buffer("mask", mask)
        self.register_buffer("share", mask.float())
        self.theta = nn.Parameter(torch.full(mask.shape, OPEN))

    @property
    def sign(self) -> int:
        """+1 where the penalty falls as gates close, −1 where it falls as they open. The paper's λ has the other sign:
        its regulariser is subtracted."""
        return 1 if self.pressure == "close" else -1

    def values(self) -> Float[Tensor, "layer head"]:
        """What each head's output is multiplied by: 1 + share·(σ(θ) − 1); share is 1, or 0 for heads without a gate."""
        gates = self.theta.sigmoid()
        return torch.lerp(torch.ones_like(gates), gates, self.share)

    def points(self) -> list[tuple[int, Site]]:
        return [(layer, "heads") for layer in range(self.shape.layers) if bool(self.mask[layer].any())]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> HeadGates:
        """g ~ U(0, 1), or ``start``."""
        drawn = torch.rand(self.theta.shape, generator=generator).clamp(_EDGE, 1 - _EDGE)
        gates = drawn if self.start is None else torch.full_like(drawn, self.start)
        self.theta.copy_(torch.where(self.mask, gates.logit(), OPEN))
        self.initialised = True
        return self

    def prepare(self, context: Context, dtype: torch.dtype) -> list[Tensor]:  # noqa: ARG002
        """g [head, 1] per layer: σ in float32, then ``dtype``."""
        return list(self.values().to(dtype)[..., None].unbind())

    def forward(
        self,
        activation: Float[Tensor, "batch pos head d_head"],
        layer: int,
        site: Site,  # noqa: ARG002
        context: Context,
    ) -> Float[Tensor, "batch pos head d_head"]:
        gates: Tensor = context.prepared[layer]  # [head, 1]
        return activation * gates.to(activation)

    def penalty(self, form: PenaltyForm = "mean") -> dict[Kind, Tensor]:  # noqa: ARG002
        """± mean over heads of clip(θ), + to close and − to open; θ = σ⁻¹(g).

        The paper's eq. 1 writes a sum; the mean, which its authors' code takes, makes λ mean the same for any number
        of heads. There is one form.
        """
        lowest = None if self.clip == "ahead" and self.pressure == "open" else -CLIP
        highest = None if self.clip == "ahead" and self.pressure == "close" else CLIP
        clipped = self.theta.clamp(lowest, highest) * self.mask
        return {"multiplicative": self.sign * clipped.sum() / self.mask.sum()}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"gates": [self.theta]}

    def n_parameters(self) -> int:
        return int(self.mask.sum())

    def masks(self) -> dict[Site, Tensor]:
        return {"heads": self.mask}

    def settings(self) -> dict[str, Any]:
        """The switches. Which heads have a gate is not among them: that is the stored ``mask``."""
        return {"pressure": self.pressure, "start": self.start, "clip": self.clip}

    def tensors(self) -> dict[str, Tensor]:
        return {"mask.heads": self.mask, "share.heads": self.share, "theta.heads": self.theta.detach()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> HeadGates:
        take_over(self.tensors(), tensors)
        self.initialised = True
        return self

    @torch.no_grad()
    def restricted(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[str] | None = None,
        strength: float = 1.0,
    ) -> HeadGates:
        """A copy that gates only some heads, or by a multiple: z + strength·(z' − z).

        Args:
            heads: heads to keep the gates of; the others pass as they are. None keeps all.
            kinds: as for other edits; gates multiply, so that without "multiplicative" nothing is left. None keeps it.
            strength: 0 is the identity, 1 the gates as they are.

        Raises:
            ValueError: a head outside the model, an unknown kind, or a strength that is not finite.
        """
        chosen = set(_KINDS if kinds is None else kinds)
        if unknown := chosen - set(_KINDS):
            raise ValueError(f"kinds must be a subset of {_KINDS}, got {sorted(unknown)}")
        if not math.isfinite(strength):
            raise ValueError(f"strength must be a finite number, got {strength}")
        keep = _gated(self.shape, heads).to(self.share.device)
        clone = copy.deepcopy(self)
        clone.share.mul_(strength * keep * ("multiplicative" in chosen))
        return clone


def _check_switches(pressure: str, start: float | None, clip: str) -> None:
    for name, value, words in (("pressure", pressure, Pressure), ("clip", clip, Clip)):
        if value not in get_args(words):
            raise ValueError(f"{name} must be one of {', '.join(get_args(words))}; got {value!r}")
    if start is not None and not 0 < start < 1:
        raise ValueError(f"start must be between 0 and 1, both excluded, or None; got {start!r}")


def _gated(shape: HeadShape, heads: Iterable[str | tuple[int, int]] | None) -> Tensor:
    """[layer, head] True where a head is named; None names all."""
    mask = torch.full((shape.layers, shape.heads), heads is None)
    for unit in parse_units(heads or (), shape):
        mask[unit] = True
    return mask
