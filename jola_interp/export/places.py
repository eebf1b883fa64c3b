"""Between which linears an edit's points lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from jola_interp.edits.base import Site
from jola_interp.export.written import ExportError
from jola_interp.models import Model

Point = tuple[int, Site]
Side = Literal["before", "behind"]
PLACES: dict[Site, tuple[Side, tuple[str, ...]]] = {
    "heads": ("before", ("attn.o",)),
    "attention": ("behind", ("attn.o",)),
    "mlp": ("behind", ("mlp.out",)),
    "residual": ("behind", ("mlp.out",)),
    "query": ("behind", ("attn.q",)),
    "key": ("behind", ("attn.k",)),
    "value": ("behind", ("attn.v",)),
    "up": ("behind", ("mlp.in",)),
    "gate": ("behind", ("mlp.gate",)),
    "norm1": ("before", ("attn.q", "attn.k", "attn.v")),
    "norm2": ("before", ("mlp.in", "mlp.gate")),
}
"""Site to the linears, in TransformerLens' words, before or behind which it lies; ``mlp`` comes before ``residual``."""


@dataclass(frozen=True)
class Place:
    """The points before and behind one linear, in the order in which they act."""

    before: list[Point] = field(default_factory=list)
    behind: list[Point] = field(default_factory=list)


def places_of(base: Model, points: Iterable[Point]) -> dict[str, Place]:
    """Linear, by name, to the points about it.

    Raises:
        ExportError: a linear that is part of a fused projection.
    """
    names = {id(module): name for name, module in base.hf.named_modules()}
    given, found = list(points), dict[str, Place]()
    for site, (side, components) in PLACES.items():
        for point in (point for point in given if point[1] == site):
            for linear in _reached(base, point[0], site, components):
                place = found.setdefault(names[id(linear)], Place())
                (place.before if side == "before" else place.behind).append(point)
    return found


def _reached(base: Model, layer: int, site: Site, components: tuple[str, ...]) -> list[nn.Module]:
    """The linears of a place; not every MLP has a gate.

    Raises:
        ExportError: one of them is part of a fused projection.
    """
    found = []
    for component in components:
        try:
            found.append(base.component(layer, component))
        except ValueError as error:
            if component == "mlp.gate" and site == "norm2":
                continue
            raise ExportError(
                f"{type(base.hf).__name__} has no linear of its own at {component}, which {site} needs: an edit there "
                "cannot be folded"
            ) from error
    return found
