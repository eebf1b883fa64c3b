"""LoFiT's first step: z' = (1 + A) ⊙ z on every head, under ‖A‖₁, so that ‖A‖₂ says which heads the task wants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from jola_interp.edits.base import HeadShape, Kind, PenaltyForm
from jola_interp.edits.jola import JoLA, Scope


class HeadScales(JoLA):
    """z' = (1 + A) ⊙ z on every head, without gates; the penalty is ‖A‖₁.

    Parameters: L·H·d_head. Steps 1 and 2 share nothing but the heads: the second, z' = z + v on K of them, is
    ``JoLA(shape, gates="none", operations="add", heads=...)``.

    Args:
        shape: the model's head shape.
        layers: restrict the edit to these layers; None is all.
        heads: restrict it to these heads, as "L3H7" or (3, 7); None is all.
        init_std: standard deviation of the starting A.
        scope: the tokens that are edited (see :class:`JoLA`).

    Raises:
        ValueError: a layer or head outside the model, an unknown scope, or nothing left to edit.

    Source: Yin, Ye, Durrett 2024 (arXiv 2406.01563), §3, step 1.
    """

    type_name: ClassVar[str] = "head_scales"

    def __init__(
        self,
        shape: HeadShape,
        *,
        layers: Iterable[int] | None = None,
        heads: Iterable[str | tuple[int, int]] | None = None,
        init_std: float = 1e-3,
        scope: Scope = "all",
    ):
        super().__init__(
            shape, gates="none", operations="multiply", layers=layers, heads=heads, init_std=init_std, scope=scope
        )

    @property
    def scales(self) -> Float[Tensor, "layer head d_head"]:
        """A; 0 where not editable."""
        part = self.site("heads")
        found: Tensor = part.vector("multiplicative") * part.mask[..., None]
        return found

    def sizes(self) -> Float[Tensor, "layer head"]:
        """‖A‖₂ of every head: what LoFiT ranks by."""
        found: Tensor = torch.linalg.vector_norm(self.scales.detach(), dim=-1)
        return found

    def penalty(self, form: PenaltyForm = "mean") -> dict[Kind, Tensor]:  # noqa: ARG002
        """‖A‖₁, the sum over all editable components, as the penalty of the multiplicative kind. There is one form.

        It is no mean, as λ₁ in the paper weighs the sum: the same λ₁ presses harder on a larger model.
        """
        return {"multiplicative": self.scales.abs().sum()}

    def settings(self) -> dict[str, Any]:
        """The switches. Which heads are editable is not among them: that is the stored ``mask``."""
        return {"init_std": self.init_std, "scope": self.scope}
