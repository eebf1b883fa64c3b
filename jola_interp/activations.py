"""How large activations are: rms(z) of every head, the unit in which an offset can be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jola_interp.backends import attach
from jola_interp.batching import Encoded, batches_of, collate, pad_id
from jola_interp.edits.base import Context, Site
from jola_interp.edits.jola import JoLA
from jola_interp.models import Model

if TYPE_CHECKING:
    from jola_interp.backends import BackendName

ROWS = 64
"""Rows that are read at most: rms(z) of a head hardly moves with more."""


class Meter(JoLA):
    """The identity, which adds up z² of every unit over tokens that are neither padding nor the first of their row."""

    def reset(self) -> Meter:
        """Start counting."""
        self.squares = {site: torch.zeros(self.shape.units(site)[:2], dtype=torch.float64) for site in self.masks()}
        self.counted = {site: [0] * self.shape.layers for site in self.masks()}
        return self

    def forward(self, activation: Tensor, layer: int, site: Site, context: Context) -> Tensor:
        if context.attention_mask is None:
            raise ValueError("rms(z) needs the attention mask: padding is not counted")
        real = context.attention_mask.to(activation.device)
        counted = (real.cumsum(1) > 1) & (real == 1)
        chosen = activation[counted].float()  # [token, *unit, width]
        squares = chosen.square().mean(-1).sum(0).reshape(-1)
        self.squares[site][layer] += squares.cpu().double()
        self.counted[site][layer] += int(counted.sum())
        return activation


@torch.no_grad()
def unit_rms(
    model: Model, rows: Sequence[Encoded], sites: Sequence[Site] = ("heads",), backend: BackendName = "lens"
) -> dict[Site, Tensor]:
    """sqrt(mean z²) over tokens and components of every head: site to [layer, unit], float32.

    The first token is left out: on many models its residual norm is a hundred times that of any other.

    Args:
        model: without an edit.
        rows: encoded rows; the first ``ROWS`` are read, prompt and answer alike.
        sites: where to measure.
        backend: how to reach the activations.
    """
    meter = Meter(model.head_shape, gates="none", sites=sites).reset()
    pad = pad_id(model.tokenizer) if model.tokenizer is not None else 0
    chosen = rows[:ROWS]
    with attach(meter, model, backend):
        for places in batches_of([len(row.ids) for row in chosen], 16):
            batch = collate([chosen[i] for i in places], pad, model.device)
            model.logits(batch.input_ids, batch.attention_mask, 1)
    return {
        site: (squares / torch.tensor(meter.counted[site])[:, None]).sqrt().float()
        for site, squares in meter.squares.items()
    }
