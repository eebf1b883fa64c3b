"""RePE: a fixed direction per layer is read off contrasts and added to the residual stream; nothing trains."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jola_interp.edits.base import Context, Edit, HeadShape, Site, take_over
from jola_interp.edits.reft import require_whole


class Steering(Edit):
    """h' = h + c_l·v_l on the residual stream behind block l, the same at every token, where c_l ≠ 0.

    v ∈ R^{L×d} and c ∈ R^L are given (:meth:`steer`), not trained. A new one has c = 0 and is the identity.

    Args:
        shape: the model's head shape.

    Source: Zou et al. 2023 (arXiv 2310.01405), §3.2: reading vectors, linear combination.
    """

    type_name: ClassVar[str] = "steering"
    initialised = True
    direction: Tensor
    strength: Tensor

    def __init__(self, shape: HeadShape):
        super().__init__()
        self.shape = shape
        self.register_buffer("direction", torch.zeros(shape.layers, shape.d_model))
        self.register_buffer("strength", torch.zeros(shape.layers))

    def steer(self, direction: Float[Tensor, "layer d_model"], strength: Float[Tensor, " layer"]) -> Steering:
        """Take over v and c (float32); layers whose c is 0 are left alone, and may keep their v for reading.

        Raises:
            ValueError: another shape, or numbers that are not finite.
        """
        return self.load_tensors({"direction": direction.float(), "strength": strength.float()})

    def points(self) -> list[tuple[int, Site]]:
        return [(int(layer), "residual") for layer in self.strength.nonzero()[:, 0]]

    def initialise(self, generator: torch.Generator) -> Steering:  # noqa: ARG002
        """Nothing is drawn."""
        return self

    def prepare(self, context: Context, dtype: torch.dtype) -> list[Tensor]:  # noqa: ARG002
        """c_l·v_l [d_model] per layer, multiplied in float32."""
        return list((self.strength[:, None] * self.direction).to(dtype).unbind())

    def forward(
        self,
        activation: Float[Tensor, "batch pos d_model"],
        layer: int,
        site: Site,  # noqa: ARG002
        context: Context,
    ) -> Float[Tensor, "batch pos d_model"]:
        shift: Tensor = context.prepared[layer]
        return activation + shift.to(activation)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {}

    def n_parameters(self) -> int:
        return 0

    def masks(self) -> dict[Site, Tensor]:
        return {}

    def settings(self) -> dict[str, Any]:
        """None: the layers are those whose stored strength is not 0."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        return {"direction": self.direction, "strength": self.strength}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Steering:
        take_over(self.tensors(), tensors)
        return self

    @torch.no_grad()
    def restricted(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,
        kinds: Iterable[str] | None = None,
        strength: float = 1.0,
    ) -> Steering:
        """A copy with a multiple of c: h + strength·(h' − h); 0 is the identity.

        Raises:
            ValueError: heads or kinds, of which there are none, or a strength that is not finite.
        """
        require_whole(heads, kinds, strength)
        clone = copy.deepcopy(self)
        clone.strength.mul_(strength)
        return clone


@torch.no_grad()
def reading_vectors(differences: Float[Tensor, "pair layer d_model"]) -> Float[Tensor, "layer d_model"]:
    """v_l = ± argmax_{‖v‖ = 1} Σ_i (v · (h_i⁺ − h_i⁻))²: the first principal component of the differences of a layer.

    About 0, not about their mean: the authors shuffle which of a pair comes first, which takes the mean to 0, and with
    the right one always first the mean is what is looked for. The sign is that of most pairs: the right one lies
    further along v; where as many say the contrary, that of their mean.

    Args:
        differences: right − wrong.

    Raises:
        ValueError: a layer whose differences are all 0, or some are not finite.

    Source: Zou et al. 2023, §3.1 (linear artificial tomography: PCA, signs by the labels).
    """
    found = []
    for layer, given in enumerate(differences.unbind(1)):
        each = given.double().cpu()
        if not bool(each.isfinite().all()) or not bool(each.any()):
            raise ValueError(f"differences: those of layer {layer} are all 0, or not finite: no direction can be read")
        vector = torch.linalg.svd(each, full_matrices=False).Vh[0]
        along = each @ vector
        votes = along.sign().sum()
        found.append(vector * (-1 if (votes if votes != 0 else along.sum()) < 0 else 1))
    return torch.stack(found).float()
