"""HardConcrete gates: pure functions of log α (Louizos et al. 2018, arXiv 1712.01312; JoLA §3).

A gate is a number in [0, 1] with point masses at both ends. One learnable log α per gate decides how likely it is
to be open. Four different numbers say "how open" a gate is, and they disagree; every plot, table and rule of this
package names the one it uses:

    p_open    P(g > 0)              the number that the penalty is made of
    expected  E[g]                  the paper's gate at inference
    point     clamp(σ(log α)(ζ − γ) + γ, 0, 1)   the released code's gate at inference (Louizos eq. 13)
    hard      1 if P(g > 0) > 1/2, else 0

All arithmetic is in the dtype of log α, which the package keeps in float32; every function is finite, with a finite
gradient, for |log α| ≤ 50.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BETA = 0.33
"""Temperature β of the concrete distribution."""
GAMMA, ZETA = -0.1, 1.1
"""The stretch interval (γ, ζ): what falls outside [0, 1] is clamped onto its ends."""
EPSILON = 1e-6
"""Uniform draws are squeezed into (ε, 1 − ε) so that their logit is finite."""
LOG_ALPHA_CLOSED = math.log(-GAMMA / ZETA)
"""log α = −ln 11 ≈ −2.398: at and below it the point gate is exactly 0."""

_SHIFT = BETA * LOG_ALPHA_CLOSED  # P(open) = σ(log α − _SHIFT) = σ(log α + 0.7913)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2  # from [−1, 1] to [0, 1]


def sample(log_alpha: Float[Tensor, "*gates"], uniform: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
    """g = clamp(s(ζ − γ) + γ, 0, 1) with s = σ((logit(ε + (1 − 2ε)u) + log α)/β).

    Args:
        log_alpha: gate parameters, any shape.
        uniform: u ~ U(0, 1) of the same shape (see :func:`uniform_like`). It is handed in rather than drawn here, so
            that several forward passes of one optimiser step can share a draw.

    Returns:
        Gates in [0, 1], differentiable in ``log_alpha``. Source: Louizos et al. 2018, eq. 10–11.
    """
    u = EPSILON + (1.0 - 2.0 * EPSILON) * uniform
    concrete = torch.sigmoid((torch.logit(u) + log_alpha) / BETA)
    return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def uniform_like(log_alpha: Float[Tensor, "*gates"], generator: torch.Generator) -> Float[Tensor, "*gates"]:
    """u ~ U(0, 1), one per gate, from the CPU ``generator`` whatever the device: same seed, same gates everywhere."""
    draw = torch.rand(log_alpha.shape, generator=generator, dtype=log_alpha.dtype)
    return draw.to(log_alpha.device)


def p_open(log_alpha: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
    """P(g > 0) = σ(log α − β ln(−γ/ζ)) = σ(log α + 0.7913). Source: Louizos et al. 2018, eq. 12."""
    return torch.sigmoid(log_alpha - _SHIFT)


def p_one(log_alpha: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
    """P(g = 1) = σ(log α + β ln(−γ/ζ)) = σ(log α − 0.7913): the upper point mass."""
    return torch.sigmoid(log_alpha + _SHIFT)


def expected(log_alpha: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
    """E[g] = ∫₀¹ P(g > x) dx = ∫₀¹ σ(log α − β·logit((x − γ)/(ζ − γ))) dx, by 24-point Gauss–Legendre quadrature.

    The integrand is smooth on [0, 1] (the logit stays within ±2.4), so the quadrature is exact to rounding.
    Source: the mean of Louizos et al. 2018, eq. 10–11; JoLA §3.2 uses it at inference.
    """
    stretched = (_NODES - GAMMA) / (ZETA - GAMMA)
    offsets = torch.as_tensor(BETA * np.log(stretched / (1.0 - stretched)), dtype=log_alpha.dtype)
    weights = torch.as_tensor(_WEIGHTS, dtype=log_alpha.dtype, device=log_alpha.device)
    exceed = torch.sigmoid(log_alpha[..., None] - offsets.to(log_alpha.device))  # [*gates, node]
    return exceed @ weights


def expected_or_closed(log_alpha: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
    """E[g], but 0 where E[g] ≤ E[g](−ln 11) = .0881: the paper's inference gate, which disregards nearly closed gates.

    The paper gives no threshold; this one closes exactly the gates that the point gate closes.
    """
    return torch.where(log_alpha > LOG_ALPHA_CLOSED, expected(log_alpha), torch.zeros_like(log_alpha))


def point(log_alpha: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
    """clamp(σ(log α)(ζ − γ) + γ, 0, 1): 0 for log α ≤ −ln 11, 1 for log α ≥ ln 11 (Louizos et al. eq. 13)."""
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def hard(log_alpha: Float[Tensor, "*gates"]) -> Float[Tensor, "*gates"]:
    """1 if P(g > 0) > 1/2, else 0 (log α > −0.7913)."""
    return (log_alpha > _SHIFT).to(log_alpha.dtype)


INFERENCE: dict[str, Callable[[Tensor], Tensor]] = {
    "expected": expected_or_closed,
    "point": point,
    "hard": hard,
}
"""Gates at inference, by the name that a Run's configuration records."""
