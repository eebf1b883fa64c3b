"""Direct logit attribution: what each head adds to a contrast of logits, past all later layers.

    attribution = Δz W_O · ∂contrast/∂stream             Δz = edit(z) − z at the position that predicts the contrast,
                                                         the norms behind linearised (:mod:`jola_interp.analysis.lens`)

Source: Elhage et al. 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jola_interp.analysis.contrast import Contrast
from jola_interp.analysis.draws import ends, p_values
from jola_interp.analysis.grids import GridMap, Sheet, reach
from jola_interp.analysis.lens import Lens
from jola_interp.analysis.parts import Glance
from jola_interp.analysis.rows import output_weights
from jola_interp.analysis.true_change import Truth
from jola_interp.edits.base import unit_label
from jola_interp.runs import Run

if TYPE_CHECKING:
    import pandas as pd


class Attributed:
    """The attributions of a table, if it has a contrast; the fields are those of :class:`Readout`."""

    title: str
    split: str
    mask: Bool[np.ndarray, "layer head"]
    group: int
    contrast: str
    attribution: Float[np.ndarray, "layer head"] | None
    attribution_se: Float[np.ndarray, "layer head"] | None
    attribution_null: Float[np.ndarray, "layer head draw"] | None
    contrast_base: Float[np.ndarray, " row"] | None
    contrast_edited: Float[np.ndarray, " row"] | None

    def attributions(self) -> pd.DataFrame:
        """One row per editable head: label, layer, head, attribution, se, null_95 and p, largest first.

        Raises:
            ValueError: there is no contrast.
        """
        import pandas as pd

        values, null = self._attributed()
        layers, heads = np.nonzero(self.mask)
        frame = pd.DataFrame(
            {
                "label": [unit_label("heads", *unit) for unit in zip(layers.tolist(), heads.tolist(), strict=True)],
                "layer": layers,
                "head": heads,
                "attribution": values[layers, heads],
                "se": cast(np.ndarray, self.attribution_se)[layers, heads],
                "null_95": ends(np.abs(null[layers, heads])),
                "p": p_values(np.abs(values[layers, heads]), np.abs(null[layers, heads])),
            }
        )
        return frame.sort_values("attribution", key=np.abs, ascending=False, kind="stable", ignore_index=True)

    def attribution_sheet(self) -> Sheet:
        """Two maps on one scale: direct logit attribution of each head, and of one random direction of its norm.

        Raises:
            ValueError: there is no contrast.
        """
        values, null = self._attributed()
        shown = {"Δz of the edit": values, "random Δz of the same norm": np.where(self.mask, null[..., 0], np.nan)}
        bounds = reach("signed", *shown.values())
        p = np.where(self.mask, p_values(np.abs(values), np.abs(null)), np.nan)
        hover = {"standard error": cast(np.ndarray, self.attribution_se), "p": p}
        layers, heads = self.mask.shape
        names = np.array([[unit_label("heads", i, j) for j in range(heads)] for i in range(layers)], dtype=object)
        panels = tuple(
            GridMap(
                values=array.astype(np.float32), title=title, labels=names, mask=self.mask, range=bounds,
                kind="signed", hover=hover if array is values else {}, group=self.group, unit="Δ contrast (logits)",
            )
            for title, array in shown.items()
        )  # fmt: skip
        return Sheet((panels,), f"{self.title}: direct logit attribution", self.attribution_notes())

    def attribution_notes(self) -> tuple[str, ...]:
        """What the attribution is of, how much of the true change it accounts for, and n.

        Raises:
            ValueError: there is no contrast.
        """
        values, _ = self._attributed()
        base, edited = cast(np.ndarray, self.contrast_base), cast(np.ndarray, self.contrast_edited)
        direct, true = float(np.nansum(values)), float((edited - base).mean())
        return (
            f"Contrast: {self.contrast}, mean of {len(base)} {self.split} rows; Δz local, norms linearised.",
            f"All heads directly: {direct:+.3f}; true change {true:+.3f} ({base.mean():.3f} to {edited.mean():.3f}).",
            "The difference goes through later layers, which the map does not show.",
        )

    def _attributed(self) -> tuple[np.ndarray, np.ndarray]:
        if self.attribution is None or self.attribution_null is None:
            raise ValueError("contrast: there is none; give a task of choices, or contrast=(' a', ' b') with the task")
        return self.attribution, self.attribution_null


def attribute(
    run: Run,
    lens: Lens,
    truth: Truth | None,
    glance: Glance,
    contrasts: Sequence[Contrast],
    draws: int,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Δz W_O · (the contrast's gradient at the stream), by row and head; the fields of :class:`Readout`."""
    assert truth is not None
    shape, device = run.edit.shape, lens.weight.device
    towards = torch.stack([_towards(lens, truth, i, contrast) for i, contrast in enumerate(contrasts)])
    by_row = torch.zeros(len(contrasts), shape.layers, shape.heads)
    null = torch.zeros(shape.layers, shape.heads, draws)
    random = torch.randn(shape.layers, shape.heads, draws, shape.d_head, generator=generator)
    random /= random.norm(dim=-1, keepdim=True)
    for layer in range(shape.layers):
        pulled = lens.residual * towards
        if layer in lens.norms:
            stream = torch.stack([truth.streams[layer][c.row][c.place] for c in contrasts])
            pulled = lens.norms[layer].backward(pulled, lens.norms[layer].at(stream))
        weights = output_weights(lens.model, layer).to(device)
        gradient = torch.einsum("hfd,rd->rhf", weights, pulled).cpu()
        moved = glance.moved[:, layer]
        by_row[:, layer] = (gradient * moved).sum(-1)
        sized = gradient * moved.norm(dim=-1, keepdim=True)  # a random direction, of Δz's norm in each row
        null[layer] = torch.einsum("rhf,hkf->hk", sized, random[layer]) / len(contrasts)
    mask = run.edit.site("heads").mask.cpu().numpy()
    values = by_row.numpy()
    spread = values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.full(mask.shape, np.nan)
    return {
        "attribution": np.where(mask, values.mean(0), np.nan).astype(np.float32),
        "attribution_se": np.where(mask, spread, np.nan).astype(np.float32),
        "attribution_null": np.where(mask[..., None], null.numpy(), np.nan).astype(np.float32),
        "contrast_base": truth.base,
        "contrast_edited": truth.edited,
    }


def _towards(lens: Lens, truth: Truth, index: int, contrast: Contrast) -> Float[Tensor, " d_model"]:
    """The gradient of a contrast at the stream that enters the final norm."""
    device = lens.weight.device
    tokens, weights = torch.tensor(contrast.tokens, device=device), torch.tensor(contrast.weights, device=device)
    given = lens.towards(tokens, weights, truth.logits[index].to(device))
    stream = truth.streams["final"][contrast.row][contrast.place]
    norm = lens.norms["final"]
    return norm.backward(given[None], norm.at(stream[None]))[0]
