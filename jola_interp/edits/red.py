"""RED: h' = s ⊙ h + b on the output of every MLP."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jola_interp.edits.base import Context, Edit, HeadShape, Site, take_over
from jola_interp.edits.bitfit import kept_kinds


class RED(Edit):
    """h' = s ⊙ h + b on the output h of every MLP, at every token; s, b ∈ R^d_model, s = 1 and b = 0 at first.

    With m = s − 1 and a = b this is JoLA without gates at the MLP. RED has no rank, whatever Table 7 of the JoLA paper
    says. Parameters: 2·L·d_model.

    Args:
        shape: the model's head shape.

    Source: Wu et al. 2024 (arXiv 2402.15179), §3; the JoLA paper's baseline "RED".
    """

    type_name: ClassVar[str] = "red"

    def __init__(self, shape: HeadShape):
        super().__init__()
        self.shape = shape
        self.s = nn.Parameter(torch.ones(shape.layers, shape.d_model))
        self.b = nn.Parameter(torch.zeros(shape.layers, shape.d_model))

    def points(self) -> list[tuple[int, Site]]:
        return [(layer, "mlp") for layer in range(self.shape.layers)]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> RED:  # noqa: ARG002
        """s = 1, b = 0: the identity. Nothing is drawn."""
        self.s.fill_(1.0)
        self.b.zero_()
        self.initialised = True
        return self

    def prepare(self, context: Context, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:  # noqa: ARG002
        """(s, b) per layer, in ``dtype``."""
        return list(zip(self.s.to(dtype).unbind(), self.b.to(dtype).unbind(), strict=True))

    def forward(
        self,
        activation: Float[Tensor, "batch pos d_model"],
        layer: int,
        site: Site,  # noqa: ARG002
        context: Context,
    ) -> Float[Tensor, "batch pos d_model"]:
        scale, shift = context.prepared[layer]
        return torch.addcmul(shift.to(activation), activation, scale.to(activation))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"multiplicative": [self.s], "additive": [self.b]}

    def n_parameters(self) -> int:
        return self.s.numel() + self.b.numel()

    def masks(self) -> dict[Site, Tensor]:
        """None: there are no units to choose among."""
        return {}

    def settings(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """``s.mlp`` and ``b.mlp``, both [layer, d_model]."""
        return {"s.mlp": self.s.detach(), "b.mlp": self.b.detach()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> RED:
        take_over(self.tensors(), tensors)
        self.initialised = True
        return self

    @torch.no_grad()
    def restricted(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[str] | None = None,
        strength: float = 1.0,
    ) -> RED:
        """A copy that only scales or only shifts, or goes a multiple of the way: h + strength·(h' − h).

        Args:
            heads: must be None.
            kinds: subset of ("additive", "multiplicative"): b and s. None keeps both.
            strength: 0 is the identity, 1 the trained edit.

        Raises:
            ValueError: heads, an unknown kind, or a strength that is not finite.
        """
        kept = kept_kinds(self, heads, kinds, strength)
        clone = copy.deepcopy(self)
        clone.s.copy_(1 + strength * ("multiplicative" in kept) * (self.s - 1))
        clone.b.mul_(strength * ("additive" in kept))
        return clone
