"""What of an edit writes to the stream: single heads, by adding or by multiplying, and a layer's offsets together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jola_interp import selection
from jola_interp.analysis.contrast import Contrast
from jola_interp.analysis.rows import Rows, output_weights, watched
from jola_interp.edits.base import unit_label
from jola_interp.edits.jola import JoLA, Operation
from jola_interp.models import Model
from jola_interp.runs import Run

BATCH = 4
"""Rows in one pass."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some heads of a layer, by one operation: their gated vectors, and what each is multiplied by before W_O."""

    label: str
    unit: str
    kind: Operation
    layer: int
    heads: tuple[int, ...]
    vectors: Float[Tensor, "unit d_head"]
    carrier: Float[Tensor, "unit d_head"]
    stream: float

    @property
    def size(self) -> Float[Tensor, "unit 1"]:
        """‖g·v‖ of each of its heads."""
        sizes: Tensor = self.vectors.norm(dim=-1, keepdim=True)
        return sizes.clamp(min=torch.finfo(sizes.dtype).tiny)

    def written(
        self, weights: Float[Tensor, "head d_head d_model"], vectors: Float[Tensor, "*k unit d_head"]
    ) -> Float[Tensor, "*k d_model"]:
        """Σ_h (vector ⊙ carrier) W_O."""
        carried = (vectors * self.carrier).to(weights)
        return torch.einsum("...uf,ufd->...d", carried, weights[list(self.heads)])

    def beside_random(
        self, weights: Float[Tensor, "head d_head d_model"], draws: int, generator: torch.Generator
    ) -> Drawn:
        """The part and, below, random vectors in the place of its g·v, scaled so that as much is written."""
        random = torch.randn(draws, *self.vectors.shape, generator=generator)
        random *= self.vectors.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True)
        own, null = self.written(weights, self.vectors), self.written(weights, random)
        scale = own.norm() / null.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(null.dtype).tiny)
        vectors = torch.cat([self.vectors[None], random * scale[..., None].to(random)])
        return Drawn(vectors, torch.cat([own[None], null * scale]))


@dataclass(frozen=True, eq=False)
class Drawn:
    """A part, first, and random vectors in its place: before W_O and behind it."""

    vectors: Float[Tensor, "k unit d_head"]
    written: Float[Tensor, "k d_model"]


def drawn(model: Model, parts: Sequence[Part], draws: int, generator: torch.Generator) -> list[Drawn]:
    """Every part beside random vectors of its norm, through its W_O."""
    found: list[Drawn] = []
    weights: tuple[int, Tensor] | None = None
    for part in parts:
        if weights is None or weights[0] != part.layer:
            weights = part.layer, output_weights(model, part.layer)
        found.append(part.beside_random(weights[1], draws, generator))
    return found


def knobs(edit: JoLA) -> dict[Operation, Float[Tensor, "layer head d_head"]]:
    """Operation to g·v of every head."""
    return {name: acting.cpu().float() for name, acting in edit.at_inference("heads").items()}


def parts_of(run: Run, model: Model, knobs: dict[Operation, Tensor], glance: Glance | None, heads: int) -> list[Part]:
    """Heads that write most of the stream they join, of each kind, and the offsets of every layer together."""
    shape = run.edit.shape
    carriers = {"additive": torch.ones(shape.layers, shape.heads, shape.d_head)}
    if glance is not None:
        carriers["multiplicative"] = glance.mean_z
    stream = [math.nan] * shape.layers if glance is None else glance.stream.tolist()
    found: list[Part] = []
    kinds: list[Operation] = [kind for kind in get_args(Operation) if kind in knobs and kind in carriers]
    for kind in kinds:
        sizes = _sizes(model, knobs[kind] * carriers[kind]) * _opened(run, kind)
        if glance is not None:  # late streams are large, so late heads write much of little weight
            sizes = sizes / glance.stream[:, None].clamp(min=torch.finfo(torch.float32).tiny)
        order = torch.argsort(-sizes.reshape(-1), stable=True)[:heads].tolist()
        for layer, head in [(i // shape.heads, i % shape.heads) for i in order if sizes.reshape(-1)[i] > 0]:
            own = (knobs[kind][layer, [head]], carriers[kind][layer, [head]], stream[layer])
            found.append(Part(unit_label("heads", layer, head), "head", kind, layer, (head,), *own))
    for layer in range(shape.layers) if "additive" in knobs else ():
        acting = tuple(knobs["additive"][layer].ne(0).any(-1).nonzero()[:, 0].tolist())
        whole = (knobs["additive"][layer, list(acting)], carriers["additive"][layer, list(acting)], stream[layer])
        found.append(Part(f"L{layer}", "layer", "additive", layer, acting, *whole))
    return found


def _sizes(model: Model, vectors: Float[Tensor, "layer head d_head"]) -> Float[Tensor, "layer head"]:
    """‖v W_O‖ of every head, a layer's W_O at a time."""
    rows = []
    for layer, own in enumerate(vectors):
        weights = output_weights(model, layer)
        rows.append(torch.einsum("hf,hfd->hd", own.to(weights), weights).norm(dim=-1).cpu())
    return torch.stack(rows)


def _opened(run: Run, kind: Operation) -> Bool[Tensor, "layer head"]:
    """Heads whose gate of a kind is open under the default rule; all where there are no gates."""
    part = run.edit.site("heads")
    if not part.kinds:
        return part.mask.cpu()
    return part.mask.cpu() & torch.from_numpy(selection.open_gates(run.log_alphas())[part.gate_of(kind)])


@dataclass(frozen=True, eq=False)
class Glance:
    """What the edited passes show.

    Attributes:
        mean_z: [layer, head, d_head] mean z as it reaches the edit, over tokens that are not the first of their row.
        stream: [layer] mean norm of the stream that enters the block of the base model, over the same tokens.
        moved: [contrast, layer, head, d_head] edit(z) − z at the positions of the contrasts.
    """

    mean_z: Tensor
    stream: Tensor
    moved: Tensor


def glance_at(rows: Rows, contrasts: Sequence[Contrast]) -> Glance:
    shape = rows.run.edit.shape
    total = torch.zeros(shape.layers, shape.heads, shape.d_head, dtype=torch.float64)
    norms, count = torch.zeros(shape.layers, dtype=torch.float64), 0
    moved = torch.zeros(len(contrasts), shape.layers, shape.heads, shape.d_head)
    for seen in watched(rows, BATCH):
        chosen = seen.real & ~seen.first
        count += int(chosen.sum())
        total += torch.stack([z[chosen].float().sum(0).cpu().double() for z in seen.before])
        norms += torch.tensor([float(x[chosen].float().norm(dim=-1).sum()) for x in seen.residual]).double()
        for index, contrast in enumerate(contrasts):
            if contrast.row in seen.places:
                row = seen.places.index(contrast.row)
                place = contrast.place - rows.encoded[contrast.row].n_answer - 1  # rows end together
                pairs = zip(seen.after, seen.before, strict=True)
                moved[index] = torch.stack([(new[row, place] - old[row, place]).float().cpu() for new, old in pairs])
    return Glance((total / max(count, 1)).float(), (norms / max(count, 1)).float(), moved)
