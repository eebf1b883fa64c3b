"""What an edit does at each of its points, as y' = s ⊙ y + c: the form in which it can be put into weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from jola_interp.edits import RED, BitFit, Composite, Edit, HeadGates, Identity, JoLA, Steering
from jola_interp.edits.base import Site
from jola_interp.export.written import ExportError

Points = dict[tuple[int, Site], "Affine"]


@dataclass(frozen=True, eq=False)
class Affine:
    """y' = scale ⊙ y + shift, both [width] in float64; heads lie side by side."""

    scale: Float[Tensor, " width"]
    shift: Float[Tensor, " width"]

    @property
    def scales(self) -> bool:
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        return bool((self.shift != 0).any())

    def then(self, after: Affine) -> Affine:
        """``after`` of this."""
        return Affine(after.scale * self.scale, after.scale * self.shift + after.shift)


def parts_of(edit: Edit) -> Iterator[Edit]:
    """The edits that an edit is made of, in their order."""
    if isinstance(edit, Composite):
        for part in edit.parts:
            yield from parts_of(cast(Edit, part))
    else:
        yield edit


@torch.no_grad()
def affine(edit: Edit) -> Points:
    """Point to what is done there, the gates being those at inference; without points at which nothing is done, and
    without the parts that act on weights.

    The numbers are those of a live edit, which adds 1 to g·m in float32; everything after that is in float64.

    Raises:
        ExportError: a part whose effect depends on the token or on the activation itself, or of an unknown kind.
    """
    found: Points = {}
    for part in parts_of(edit):
        if part.on_weights:
            continue
        for point, given in _read(part).items():
            found[point] = found[point].then(given) if point in found else given
    return {point: given for point, given in found.items() if given.scales or given.shifts}


def _read(edit: Edit) -> Points:
    name = type(edit).__name__
    if not edit.everywhere:
        raise ExportError(
            f"{name} acts on some tokens only (scope, or positions of a prompt), and weights act on all: it cannot be "
            "exported; attach it to the model in place of that"
        )
    for kind, reader in _READERS.items():
        if isinstance(edit, kind):
            return reader(edit)
    raise ExportError(f"{name} cannot be exported: it is not known to be a fixed scale and offset of an activation")


def _jola(edit: JoLA) -> Points:
    found: Points = {}
    for name in edit.sites:
        site = cast(Site, name)
        acting = edit.at_inference(site)
        multiple = acting.get("multiplicative")
        found |= _points(site, None if multiple is None else 1 + multiple, acting.get("additive"))
    return found


def _head_gates(edit: HeadGates) -> Points:
    return _points("heads", edit.values()[..., None].expand(-1, -1, edit.shape.d_head), None)


def _bitfit(edit: BitFit) -> Points:
    found: Points = {}
    for site, bias in edit.b.items():
        found |= _points(cast(Site, site), None, bias)
    return found


def _steering(edit: Steering) -> Points:
    return _points("residual", None, edit.strength[:, None] * edit.direction)


def _points(
    site: Site, scale: Float[Tensor, "layer *unit width"] | None, shift: Float[Tensor, "layer *unit width"] | None
) -> Points:
    """The points of one site; None is 1, or 0."""
    some = cast(Tensor, shift if scale is None else scale)
    scales = torch.ones_like(some) if scale is None else scale
    shifts = torch.zeros_like(some) if shift is None else shift
    rows = [value.detach().to("cpu", torch.float64).flatten(1) for value in (scales, shifts)]
    return {(layer, site): Affine(s, c) for layer, (s, c) in enumerate(zip(*rows, strict=True))}


_READERS: dict[type[Edit], Callable[[Any], Points]] = {
    JoLA: _jola,  # and its kinds: HeadScales, Subset
    HeadGates: _head_gates,
    BitFit: _bitfit,
    RED: lambda edit: _points("mlp", edit.s, edit.b),
    Steering: _steering,
    Identity: lambda _: {},
}
