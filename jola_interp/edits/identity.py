"""No edit at all: what zero-shot and few-shot prompting are compared by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jola_interp.edits.base import Context, Edit, HeadShape, Site, take_over


class Identity(Edit):
    """z' = z: nothing is edited and nothing trains.

    Args:
        shape: the model's head shape.
    """

    type_name: ClassVar[str] = "identity"
    initialised = True

    def __init__(self, shape: HeadShape):
        super().__init__()
        self.shape = shape

    def points(self) -> list[tuple[int, Site]]:
        return []

    def initialise(self, generator: torch.Generator) -> Identity:  # noqa: ARG002
        return self

    def forward(self, activation: Tensor, layer: int, site: Site, context: Context) -> Tensor:  # noqa: ARG002
        return activation

    def settings(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Identity:
        take_over({}, tensors)
        return self

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {}

    def n_parameters(self) -> int:
        return 0

    def masks(self) -> dict[Site, Tensor]:
        return {}

    def restricted(
        self,
        heads: Iterable[str | tuple[int, int]] | None = None,  # noqa: ARG002
        kinds: Iterable[str] | None = None,  # noqa: ARG002
        strength: float = 1.0,  # noqa: ARG002
    ) -> Identity:
        return self
