"""What an offset writes: the logit lens of it, beside what it truly does to the logits.

    Δlogits = κ ⊙ U · mean_p N'(r_p) · v                 v = g_a·a W_O[l, h], less its mean over the vocabulary
    N'(r) v = w ⊙ (c(v) − r̂ · mean(r̂ ⊙ c(v))) / s(r)     c(v) = v − mean(v) for a LayerNorm, v for an RMSNorm;
                                                         s(r) = sqrt(mean c(r)² + ε), r̂ = c(r)/s(r)

U is the unembedding, w the weight of the final norm, r_p the stream that enters it at the positions p that predict
answer tokens, in the base model. N' is the whole derivative of the norm, so that the lens is what the offset does to
first order if no later layer answers to it. (With the scale frozen, as is usual, the term along r̂ is missing.) A norm
between W_O and the stream (Gemma 2 and 3, OLMo 2, GLM 4) is linearised in the same way at what enters it, a residual
multiplier (Granite) is a factor. κ is a logit scale (Cohere, Granite), measured, times the mean over p of
1 − (logit/cap)² where logits are capped (Gemma 2: the mean of products is taken as the product of means). Without a
task there is no r: N' v = w ⊙ c(v), of which only the direction means something.

Later layers do answer. So the same part of the edit is also put alone into the model, and the change of its logits
stands beside the lens with their correlation over the vocabulary. Source of the lens: nostalgebraist 2020; of direct
logit attribution: Elhage et al. 2021.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from jola_interp import selection
from jola_interp._log import logger
from jola_interp.analysis.grids import GridMap, Sheet, reach
from jola_interp.analysis.rows import Rows, Split, output_weights, prepared, require_heads, watched
from jola_interp.analysis.summary import title_of
from jola_interp.backends import Attachment, attach
from jola_interp.backends.restart import Recording, RestartError, recorded, restarted
from jola_interp.batching import IGNORED, Batch, encode_answer
from jola_interp.edits.base import unit_label
from jola_interp.edits.jola import JoLA, Operation
from jola_interp.evaluation.likelihood import label_spans
from jola_interp.models import Model, _unwrapped
from jola_interp.runs import Run
from jola_interp.tasks import Example, Task

if TYPE_CHECKING:
    import pandas as pd

TRUSTED = 0.5
"""Tokens are listed where lens and true change correlate at least so much (Pearson, over the vocabulary)."""
LEVEL = 0.05
"""And where their largest Δlogit is beyond the null's at this p; 20 random vectors are the fewest that can show it."""
BATCH = 4
"""Rows in one pass."""
VOCABULARY = 16384
"""Rows of the unembedding that are multiplied at once."""
MARKS = {" ": "·", "\n": "↵", "\t": "⇥"}
"""How white space in a token is shown."""
AGREE, ROUNDINGS = 1e-3, 8
"""How far norm and unembedding, put together here, may miss the model's own logits: this share of the largest, or so
many roundings of its dtype."""
_LARGE, _SMALL = 1e3, 1e-4
"""Sizes of the vectors by which a norm is read: its ε is nothing beside the square of one, and all beside the other."""


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Readout:
    """What parts of an edit write: one entry per vector, heads first, largest share of the stream first, then layers.

    Logits are counted from their mean over the vocabulary, which the softmax does not see.

    Attributes:
        title: model and task of the Run.
        split, rows, positions: what was read: so many rows of a task's split, so many positions that predict answer
            tokens; "", 0 and 0 without a task.
        draws: random vectors of the null for each vector.
        labels: "L3H7", or "L3" for the sum over the heads of a layer.
        kinds: ``additive`` g_a·a W_O · ``multiplicative`` the mean over not-first tokens of (g_m·m ⊙ z) W_O.
        units: ``head`` or ``layer``.
        layers: of each vector.
        norm: ‖v‖ of what W_O writes.
        stream: mean ‖residual‖ over not-first tokens where the vector is added; NaN without a task.
        top_ids, bottom_ids: token ids by Δlogit of the lens, best and worst first.
        top_tokens, bottom_tokens: the same visibly: · is a space, ↵ a newline, ⇥ a tab.
        top_delta, bottom_delta: Δlogit of the lens.
        top_true, bottom_true: true mean change of the same tokens' logits; NaN without a task.
        peak, kurtosis: largest |Δlogit|, and excess kurtosis of Δlogit over the vocabulary.
        null_peak, null_kurtosis: the same of random g·a (or g·m) through the same W_O, scaled to the same ‖v‖.
        p, p_kurtosis: (1 + draws that reach it)/(1 + draws).
        pearson, spearman: correlation over the vocabulary of the lens with the true change; NaN without a task.
        null_pearson: correlation of the null's lens with the same true change.
        mask: heads that are editable.
        group: query heads per key-value head, or 0.
        contrast: what the attribution is of; "" where there is none.
        attribution, attribution_se: mean over rows, and its standard error, of what each head's Δz (local: edit(z) − z
            in the edited pass) adds to the contrast through the linearised norms, at the position that predicts it.
        attribution_null: the same of a random direction in place of Δz, of its norm in each row.
        contrast_base, contrast_edited: the contrast in the base model and under the whole edit.
    """

    title: str
    split: str
    rows: int
    positions: int
    draws: int
    labels: tuple[str, ...]
    kinds: tuple[str, ...]
    units: tuple[str, ...]
    layers: Int[np.ndarray, " vector"]
    norm: Float[np.ndarray, " vector"]
    stream: Float[np.ndarray, " vector"]
    top_ids: Int[np.ndarray, "vector token"]
    bottom_ids: Int[np.ndarray, "vector token"]
    top_tokens: tuple[tuple[str, ...], ...]
    bottom_tokens: tuple[tuple[str, ...], ...]
    top_delta: Float[np.ndarray, "vector token"]
    bottom_delta: Float[np.ndarray, "vector token"]
    top_true: Float[np.ndarray, "vector token"]
    bottom_true: Float[np.ndarray, "vector token"]
    peak: Float[np.ndarray, " vector"]
    kurtosis: Float[np.ndarray, " vector"]
    null_peak: Float[np.ndarray, "vector draw"]
    null_kurtosis: Float[np.ndarray, "vector draw"]
    p: Float[np.ndarray, " vector"]
    p_kurtosis: Float[np.ndarray, " vector"]
    pearson: Float[np.ndarray, " vector"]
    spearman: Float[np.ndarray, " vector"]
    null_pearson: Float[np.ndarray, "vector draw"]
    mask: Bool[np.ndarray, "layer head"]
    group: int = 0
    contrast: str = ""
    attribution: Float[np.ndarray, "layer head"] | None = field(default=None, repr=False)
    attribution_se: Float[np.ndarray, "layer head"] | None = field(default=None, repr=False)
    attribution_null: Float[np.ndarray, "layer head draw"] | None = field(default=None, repr=False)
    contrast_base: Float[np.ndarray, " row"] | None = field(default=None, repr=False)
    contrast_edited: Float[np.ndarray, " row"] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def trusted(self) -> Bool[np.ndarray, " vector"]:
        """Where tokens are listed: the lens was held against the model and correlates at least ``TRUSTED``, and its
        largest Δlogit is beyond those of random vectors through the same W_O (p ≤ ``LEVEL``): else the tokens are the
        head's, whatever the edit does."""
        return np.asarray((np.nan_to_num(self.pearson, nan=-1.0) >= TRUSTED) & (self.p <= LEVEL))

    @property
    def sentences(self) -> tuple[str, ...]:
        """Why a vector's tokens are not listed; "" where they are."""
        return tuple(map(self._sentence, range(len(self))))

    @property
    def null_peak_95(self) -> Float[np.ndarray, " vector"]:
        """What the largest |Δlogit| of 95 % of the draws stays below."""
        return _ends(self.null_peak)

    @property
    def null_pearson_95(self) -> Float[np.ndarray, " vector"]:
        """What |r| of 95 % of the draws with the true change stays below."""
        return _ends(np.abs(self.null_pearson))

    def top(self, k: int) -> Readout:
        """The ``k`` vectors with the largest |Δlogit|, largest first."""
        return self._take(np.argsort(-self.peak, kind="stable")[:k])

    def of(self, unit: str, kind: str | None = None) -> Readout:
        """The vectors of heads (``head``) or of layers (``layer``) alone, of one kind if that is given."""
        pairs = enumerate(zip(self.units, self.kinds, strict=True))
        chosen = [place for place, found in pairs if found == (unit, kind or found[1])]
        return self._take(np.array(chosen, dtype=np.int64))

    def to_frame(self) -> pd.DataFrame:
        """One row per vector: its sizes, nulls and correlations, and its tokens, or why they are not listed."""
        import pandas as pd

        columns: dict[str, Any] = {
            "label": self.labels, "unit": self.units, "kind": self.kinds, "layer": self.layers,
            "norm": self.norm, "share_of_stream": self.norm / self.stream,
            "pearson": self.pearson, "spearman": self.spearman, "null_pearson_95": self.null_pearson_95,
            "peak": self.peak, "null_peak_95": self.null_peak_95, "p": self.p,
            "kurtosis": self.kurtosis, "null_kurtosis_95": _ends(self.null_kurtosis), "p_kurtosis": self.p_kurtosis,
            "top": self._listed(self.top_tokens, self.top_delta),
            "bottom": self._listed(self.bottom_tokens, self.bottom_delta),
        }  # fmt: skip
        return pd.DataFrame(columns)

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
                "null_95": _ends(np.abs(null[layers, heads])),
                "p": _p_values(np.abs(values[layers, heads]), np.abs(null[layers, heads])),
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
        p = np.where(self.mask, _p_values(np.abs(values), np.abs(null)), np.nan)
        hover = {"standard error": cast(np.ndarray, self.attribution_se), "p": p}
        names = np.array([[unit_label("heads", *unit) for unit in row] for row in _grid(self.mask)], dtype=object)
        panels = tuple(
            GridMap(
                values=array.astype(np.float32), title=title, labels=names, mask=self.mask, range=bounds,
                kind="signed", hover=hover if array is values else {}, group=self.group, unit="Δ contrast (logits)",
            )
            for title, array in shown.items()
        )  # fmt: skip
        return Sheet((panels,), f"{self.title}: direct logit attribution", self.attribution_notes())

    def notes(self) -> tuple[str, ...]:
        """What the lens is, what misleads in it, and n."""
        least = f"{1 / (1 + self.draws):.2g}"
        null = f"Null: {self.draws} random vectors through the same W_O, scaled to the same norm (so p ≥ {least})."
        if not self.rows:
            plain = "Logit lens w ⊙ c(v) through the unembedding: no task, so its scale means nothing"
            return (f"{plain} and it was not held against the model.", null)
        lens = f"Logit lens linearised at {self.positions:,} answer positions of {self.rows} {self.split} rows."
        true = f"Tokens are listed where it correlates at least {TRUSTED} with the true change of the logits when this"
        told = f"{true} part of the edit acts alone, and its largest Δlogit is beyond the null's (p ≤ {LEVEL})."
        return (
            lens,
            told,
            null,
            "r itself has no null here: the lens of a random vector may agree with its effect too.",
        )

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

    def _sentence(self, place: int) -> str:
        if self.norm[place] == 0:
            return "writes nothing"
        if math.isnan(r := float(self.pearson[place])):
            return "not held against the model" if self.rows else "not held against the model: that needs a task"
        if r < TRUSTED:
            return f"the lens does not predict what this {self.units[place]} does (r = {r:.2f})"
        return "" if self.p[place] <= LEVEL else f"random vectors write as much (p = {self.p[place]:.2f})"

    def _listed(self, tokens: tuple[tuple[str, ...], ...], deltas: Float[np.ndarray, "vector token"]) -> list[str]:
        return [
            said or ", ".join(f"{token} {delta:+.2f}" for token, delta in zip(names, values, strict=True))
            for said, names, values in zip(self.sentences, tokens, deltas, strict=True)
        ]

    def _attributed(self) -> tuple[np.ndarray, np.ndarray]:
        if self.attribution is None or self.attribution_null is None:
            raise ValueError("contrast: there is none; give a task of choices, or contrast=(' a', ' b') with the task")
        return self.attribution, self.attribution_null

    def _take(self, chosen: Int[np.ndarray, " chosen"]) -> Readout:
        """The vectors at some places; what is of the whole edit stays."""
        found: dict[str, Any] = {}
        for name in _PER_VECTOR:
            value = getattr(self, name)
            found[name] = value[chosen] if isinstance(value, np.ndarray) else tuple(value[i] for i in chosen)
        return replace(self, **found)


_PER_VECTOR = (
    "labels", "kinds", "units", "layers", "norm", "stream", "top_ids", "bottom_ids", "top_tokens", "bottom_tokens",
    "top_delta", "bottom_delta", "top_true", "bottom_true", "peak", "kurtosis", "null_peak", "null_kurtosis", "p",
    "p_kurtosis", "pearson", "spearman", "null_pearson",
)  # fmt: skip


@torch.no_grad()
def readout(
    run: Run,
    task: str | Task | None = None,
    model: str | Model | None = None,
    *,
    heads: int = 12,
    tokens: int = 10,
    draws: int = 20,
    rows: int = 16,
    split: Split = "test",
    contrast: tuple[str, str] | None = None,
    seed: int = 0,
) -> Readout:
    """Δlogits of what the edit writes: of single heads, of every layer's offsets together, and of its scales.

    The module says which formula. Costs 2·heads + layers passes over the rows, each from its layer on, and three more;
    holds (2·heads + layers) × vocabulary numbers. In bfloat16 small changes drown in rounding, which lowers the
    correlations: hand in the model in float32.

    Args:
        run: whose kept edit is read.
        task: whose rows the lens is linearised at and held against; None leaves out all that needs rows, the
            multiplicative part among it, and then no tokens are listed.
        model: None is the Run's own.
        heads: how many of the heads whose gate is open (``p_open>0.5``; all of an edit without gates) to read, of each
            kind: those that write most, over the norm of the stream (without a task: most).
        tokens: how many to keep at each end.
        draws: random vectors for each null.
        rows: the first so many rows of ``split``.
        contrast: two texts, whose first tokens are compared in place of a choice's options; a text task has no
            attribution without it.
        seed: of the random vectors.

    Raises:
        ValueError: a field outside its range; an edit that does not act on heads, or has no offsets where no task is
            given; an edit that is attached to the model; a final norm that is neither LayerNorm nor RMSNorm, or logits
            that are not the unembedding of it.
    """
    for name, value in {"heads": heads, "tokens": tokens, "draws": draws}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer ≥ 1; got {value!r}")
    require_heads(run)
    knobs = _knobs(run.edit)
    if task is None and (contrast is not None or "additive" not in knobs):
        wanted = "a contrast" if contrast is not None else "this edit, which has no offsets,"
        raise ValueError(f"task: {wanted} can only be read on the rows of a task")
    read = None if task is None else prepared(run, task, model, split=split, rows=rows, what="readout")
    lens = Lens(run.ready(model, "readout") if read is None else read.model)
    contrasts = [] if read is None else _contrasts(read, contrast)
    glance = None if read is None else _glance(read, contrasts)
    parts = _parts(run, lens.model, knobs, glance, heads)
    truth = None if read is None else _truth(read, lens, parts, contrasts)
    if truth is not None:
        lens.place({name: torch.cat(streams) for name, streams in truth.streams.items()}, truth.slope)
    generator = torch.Generator().manual_seed(seed)
    found = _table(lens, parts, truth, min(tokens, lens.vocabulary), draws, generator)
    said = "" if not contrasts else _words_of(contrast)
    attributed = _attribution(run, lens, truth, cast(_Glance, glance), contrasts, draws, generator) if contrasts else {}
    return Readout(
        title=title_of(run),
        split=split if read is not None else "",
        rows=len(read.encoded) if read is not None else 0,
        positions=0 if truth is None else truth.positions,
        draws=draws,
        mask=run.edit.site("heads").mask.cpu().numpy(),
        group=_group(run),
        contrast=said,
        **found,
        **attributed,
    )


# -- the lens ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Point:
    """Where a norm is linearised: r̂ = c(r)/s(r) and s(r) of ``n`` places."""

    unit: Float[Tensor, "n d_model"]
    scale: Float[Tensor, "n 1"]


class LinearNorm:
    """N(x) = w ⊙ c(x)/s(x) + b, read off a module by what it does, and its derivative at given places.

    Attributes:
        weight, bias: w and b, float32, whatever the module makes of its parameters (Gemma: 1 + weight).
        centred: whether c takes the mean away (LayerNorm) or does nothing (RMSNorm).
        epsilon: ε.

    Raises:
        ValueError: the module is neither.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module, width: int, device: torch.device):
        self.module = module
        probe = _balanced(width).to(device)
        self.bias = self.plain(torch.zeros_like(probe))
        written = self.plain(_LARGE * probe) - self.bias
        self.weight = written * probe.square().mean().sqrt() / probe
        moved = self.plain(_LARGE * (probe + 1)) - self.bias
        self.centred = torch.allclose(moved, written, rtol=AGREE, atol=AGREE * float(written.abs().max()))
        self.epsilon = self._epsilon(_SMALL * probe)
        self._check(width, device)

    def at(self, stream: Float[Tensor, "n d_model"]) -> Point:
        """The places of some vectors."""
        centred = self._centred(stream)
        scale = (centred.square().mean(-1, keepdim=True) + self.epsilon).sqrt()
        return Point(centred / scale, scale)

    def forward(self, v: Float[Tensor, "n d_model"], at: Point | None) -> Float[Tensor, "n d_model"]:
        """N' v; w ⊙ c(v) without a place."""
        centred = self._centred(v)
        return self.weight * (centred if at is None else _less(centred, at))

    def backward(self, u: Float[Tensor, "n d_model"], at: Point | None) -> Float[Tensor, "n d_model"]:
        """N'ᵀ u."""
        weighted = self.weight * u
        return self._centred(weighted if at is None else _less(weighted, at))

    def _centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def plain(self, x: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
        """N(x) of the module itself, in float32."""
        parameters = {name: value.float() for name, value in self.module.named_parameters()}
        return cast(Tensor, torch.func.functional_call(self.module, parameters, (x,))).to(x)

    def _epsilon(self, x: Float[Tensor, " d_model"]) -> float:
        """s(x)² − mean x² of a small vector."""
        weighted, written = self.weight * x, self.plain(x) - self.bias
        scale = weighted.square().sum() / (weighted * written).sum()
        return max(float(scale.square() - x.square().mean()), 0.0)

    def _check(self, width: int, device: torch.device) -> None:
        x = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(device)
        point, written = self.at(x), self.plain(x)
        if not torch.allclose(self.weight * point.unit + self.bias, written, atol=AGREE * float(written.abs().max())):
            raise ValueError(f"readout: {type(self.module).__name__} is neither a LayerNorm nor an RMSNorm")


class Lens:
    """The way from what W_O writes to the logits of one model, plain or booted.

    Attributes:
        model: whose.
        modules: name to the module of each norm as it is called in a pass: "final", and a layer's where one stands
            between W_O and the stream.
        scale: of the logits over what the unembedding gives.
        cap: the softcap of the logits; None is none.

    Raises:
        ValueError: no final norm or unembedding is found, or they do not give the model's logits.
    """

    def __init__(self, model: Model):
        self.model = model
        config = model.hf.config.get_text_config()
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.residual = float(getattr(config, "residual_multiplier", None) or 1.0)
        unembedding = _unwrapped(model.hf.get_output_embeddings())
        weight = getattr(unembedding, "weight", None)
        shape, final = model.head_shape, _component(model, "ln_final")
        if final is None or weight is None or not weight.is_floating_point() or weight.shape[1] != shape.d_model:
            raise ValueError(
                f"readout: {model.name} ({type(model.hf).__name__}) has no final norm and plain unembedding "
                f"[vocabulary, {shape.d_model}] that could be found"
            )
        self.weight: Tensor = weight
        self.bias: Tensor | None = getattr(unembedding, "bias", None)
        found = {layer: _component(model, f"blocks.{layer}.ln1_post") for layer in range(shape.layers)}
        self.modules: dict[str | int, nn.Module] = {"final": final}
        self.modules |= {layer: module for layer, module in found.items() if module is not None}
        self.norms = {
            name: LinearNorm(_unwrapped(module), shape.d_model, weight.device) for name, module in self.modules.items()
        }
        self.points: dict[str | int, Point] = {}
        self.slope: Tensor | float = 1.0
        self.scale = self._calibrated()

    @property
    def vocabulary(self) -> int:
        """How many tokens have a logit."""
        return int(self.weight.shape[0])

    def place(
        self, streams: Mapping[str | int, Float[Tensor, "n d_model"]], slope: Float[Tensor, " vocab"] | float = 1.0
    ) -> None:
        """Linearise every norm at what enters it, and the cap by its mean slope there."""
        self.points = {name: self.norms[name].at(stream) for name, stream in streams.items()}
        self.slope = 1.0 if self.cap is None else slope

    def through(self, written: Float[Tensor, "k d_model"], layer: int) -> Float[Tensor, "k d_model"]:
        """What the unembedding is given of vectors that W_O writes at a layer: the mean over places."""
        means = []
        for v in written.to(self.weight.device):
            for name in (layer, "final"):
                if name in self.norms:
                    v = self.norms[name].forward(v.expand(1, -1) if v.dim() == 1 else v, self.points.get(name))
            means.append(self.residual * v.mean(0))
        return torch.stack(means)

    def logits(self, normed: Float[Tensor, "k d_model"]) -> Float[Tensor, "k vocab"]:
        """Δlogits of them, less their mean over the vocabulary."""
        change = self._products(normed) * self.scale * self.slope
        return change - change.mean(-1, keepdim=True)

    def towards(
        self, tokens: Int[Tensor, " token"], weights: Float[Tensor, " token"], logits: Float[Tensor, " token"]
    ) -> Float[Tensor, " d_model"]:
        """u with Σ weight · Δlogit = u · (what the unembedding is given), at a place with these logits."""
        slope = 1.0 if self.cap is None else 1 - (logits / self.cap).square()
        return (weights * slope * self.scale) @ self.weight[tokens].float()

    def _products(self, normed: Float[Tensor, "k d_model"]) -> Float[Tensor, "k vocab"]:
        """With the unembedding, in float32, some of its rows at a time."""
        return torch.cat([normed @ part.float().T for part in self.weight.split(VOCABULARY)], -1)

    def _calibrated(self) -> float:
        """The scale, on two rows of six tokens; refuses logits that are no scaled (and capped) unembedding."""
        model = self.model
        ids = torch.arange(1, 13, device=model.device).view(2, 6) % model.vocab_size
        with _inputs({"final": self.modules["final"]}) as kept:
            logits = model.logits(ids, torch.ones_like(ids)).float()
        normed = self.norms["final"].plain(kept["final"].float().to(self.weight.device)).flatten(0, 1)
        plain = (self._products(normed) + (0.0 if self.bias is None else self.bias.float())).to(logits)
        plain = plain.view_as(logits)
        if self.cap is not None:
            scale, plain = 1.0, self.cap * torch.tanh(plain / self.cap)
        else:
            scale = float((plain * logits).sum() / plain.square().sum())
        worst = float((logits - scale * plain).abs().max() / logits.abs().max())
        if not worst <= max(AGREE, ROUNDINGS * torch.finfo(model.dtype).eps):
            raise ValueError(
                f"readout: the logits of {model.name} ({type(model.hf).__name__}) are not the unembedding of its final "
                f"norm: they differ by {worst:.2g} of the largest"
            )
        return scale


def _less(x: Tensor, at: Point) -> Tensor:
    """(x − r̂ · mean(r̂ ⊙ x))/s."""
    return (x - at.unit * (at.unit * x).mean(-1, keepdim=True)) / at.scale


def _balanced(width: int) -> Float[Tensor, " width"]:
    """±1 in turn, with mean 0 also where the width is odd."""
    x = torch.ones(width)
    x[1::2] = -1
    if width % 2 and width > 1:
        x[-3:] = torch.tensor([1.0, 1.0, -2.0])
    return x


def _component(model: Model, path: str) -> nn.Module | None:
    """The module at a TransformerLens path as it is called in a pass, booted or not; None if there is none."""
    try:
        if not model.booted:
            return model.hf.get_submodule(model._path(path))
        found: Any = model.bridge
        for name in path.split("."):
            found = found[int(name)] if name.isdigit() else getattr(found, name)
        return found if isinstance(found, nn.Module) else None
    except (AttributeError, IndexError, KeyError, ValueError):
        return None


@contextmanager
def _inputs(modules: Mapping[str | int, nn.Module]) -> Iterator[dict[str | int, Tensor]]:
    """Keep what enters each module in the next pass."""
    kept: dict[str | int, Tensor] = {}

    def keeping(name: str | int) -> Any:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[name] = (args[0] if args else next(iter(kwargs.values()))).detach()

        return keep

    handles = [m.register_forward_pre_hook(keeping(name), with_kwargs=True) for name, m in modules.items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


# -- what is read ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Part:
    """Some heads of a layer, by one operation: their gated vectors, and what each is multiplied by before W_O."""

    label: str
    unit: str
    kind: Operation
    layer: int
    heads: tuple[int, ...]
    vectors: Float[Tensor, "unit d_head"]
    carrier: Float[Tensor, "unit d_head"]
    stream: float

    def written(
        self, weights: Float[Tensor, "head d_head d_model"], vectors: Float[Tensor, "*k unit d_head"]
    ) -> Float[Tensor, "*k d_model"]:
        """Σ_h (vector ⊙ carrier) W_O."""
        carried = (vectors * self.carrier).to(weights)
        return torch.einsum("...uf,ufd->...d", carried, weights[list(self.heads)])

    def beside_random(
        self, weights: Float[Tensor, "head d_head d_model"], draws: int, generator: torch.Generator
    ) -> Float[Tensor, "k d_model"]:
        """What is written and, below, what random vectors in the place of g·v write, scaled to the same norm."""
        random = torch.randn(draws, *self.vectors.shape, generator=generator)
        random *= self.vectors.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True)
        own, null = self.written(weights, self.vectors), self.written(weights, random)
        sizes = null.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(null.dtype).tiny)
        return torch.cat([own[None], null * own.norm() / sizes])


def _knobs(edit: JoLA) -> dict[Operation, Float[Tensor, "layer head d_head"]]:
    """Operation to g·v of every head."""
    part = edit.site("heads")
    gates = part.gate_values(edit.inference, {})
    return {name: cast(Tensor, part.gated(name, gates)).detach().cpu().float() for name in part.operations}


def _parts(run: Run, model: Model, knobs: dict[Operation, Tensor], glance: _Glance | None, heads: int) -> list[_Part]:
    """Heads that write most of the stream they join, of each kind, and the offsets of every layer together."""
    shape = run.edit.shape
    carriers = {"additive": torch.ones(shape.layers, shape.heads, shape.d_head)}
    if glance is not None:
        carriers["multiplicative"] = glance.mean_z
    stream = [math.nan] * shape.layers if glance is None else glance.stream.tolist()
    found: list[_Part] = []
    kinds: list[Operation] = [kind for kind in get_args(Operation) if kind in knobs and kind in carriers]
    for kind in kinds:
        sizes = _sizes(model, knobs[kind] * carriers[kind]) * _opened(run, kind)
        if glance is not None:  # late streams are large, so late heads write much of little weight
            sizes = sizes / glance.stream[:, None].clamp(min=torch.finfo(torch.float32).tiny)
        order = torch.argsort(-sizes.reshape(-1), stable=True)[:heads].tolist()
        for layer, head in [(i // shape.heads, i % shape.heads) for i in order if sizes.reshape(-1)[i] > 0]:
            own = (knobs[kind][layer, [head]], carriers[kind][layer, [head]], stream[layer])
            found.append(_Part(unit_label("heads", layer, head), "head", kind, layer, (head,), *own))
    for layer in range(shape.layers) if "additive" in knobs else ():
        acting = tuple(knobs["additive"][layer].ne(0).any(-1).nonzero()[:, 0].tolist())
        whole = (knobs["additive"][layer, list(acting)], carriers["additive"][layer, list(acting)], stream[layer])
        found.append(_Part(f"L{layer}", "layer", "additive", layer, acting, *whole))
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


@dataclass(frozen=True)
class _Contrast:
    """Σ weight · logit at the position of a row that predicts answer token ``place``."""

    row: int
    place: int
    tokens: tuple[int, ...]
    weights: tuple[float, ...]

    def of(self, logits: Float[Tensor, "answer vocab"]) -> float:
        """Its value."""
        return float(logits[self.place, list(self.tokens)].double() @ torch.tensor(self.weights).to(logits).double())


def _contrasts(rows: Rows, contrast: tuple[str, str] | None) -> list[_Contrast]:
    """One per row: right option against the mean of the wrong ones, or one text against another.

    A row is left out where no wrong option differs from the right one at its first telling token.
    """
    train = rows.run.config["train"]
    pair = None if contrast is None else _pair(rows, contrast)
    found = []
    for row, example in enumerate(rows.examples):
        options = _options(rows, example, train) if rows.task.kind == "choice" else []
        place = label_spans(options)[0][0] if options else 0
        if pair is not None:
            found.append(_Contrast(row, place, pair, (1.0, -1.0)))
        elif options:
            right = options[rows.task.options_of(example).index(example.answer)][place]
            wrong = [option[place] for option in options if option[place] != right]
            if wrong:
                found.append(_Contrast(row, place, (right, *wrong), (1.0, *[-1 / len(wrong)] * len(wrong))))
    return found


def _options(rows: Rows, example: Example, train: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Each option as training would write it, in tokens."""
    texts = [rows.task.worded(name, train["answers"]) for name in rows.task.options_of(example)]
    return [tuple(encode_answer(text, cast(Any, rows.model.tokenizer), train["eos"])) for text in texts]


def _pair(rows: Rows, contrast: tuple[str, str]) -> tuple[int, int]:
    """The first tokens of two texts."""
    if len(contrast) != 2 or not all(isinstance(text, str) for text in contrast):
        raise ValueError(f"contrast must be two texts, such as (' a', ' b'); got {contrast!r}")
    first = [encode_answer(text, cast(Any, rows.model.tokenizer), False)[:1] for text in contrast]
    if not all(first) or first[0] == first[1]:
        raise ValueError(f"contrast must be two texts that begin with different tokens; got {contrast!r}")
    return first[0][0], first[1][0]


def _words_of(contrast: tuple[str, str] | None) -> str:
    if contrast is None:
        return "logit of the right option − mean logit of the wrong ones"
    first, second = (_marked(text) for text in contrast)
    return f"logit of {first} − logit of {second}"


# -- what the model shows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Glance:
    """What the edited passes show.

    Attributes:
        mean_z: [layer, head, d_head] mean z as it reaches the edit, over tokens that are not the first of their row.
        stream: [layer] mean norm of the stream that enters the block of the base model, over the same tokens.
        moved: [contrast, layer, head, d_head] edit(z) − z at the positions of the contrasts.
    """

    mean_z: Tensor
    stream: Tensor
    moved: Tensor


def _glance(rows: Rows, contrasts: Sequence[_Contrast]) -> _Glance:
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
    return _Glance((total / max(count, 1)).float(), (norms / max(count, 1)).float(), moved)


@dataclass(eq=False)
class _Truth:
    """What the passes with parts of the edit show at the positions that predict answer tokens.

    Attributes:
        change: [part, vocab] mean change of the logits when only that part acts.
        slope: [vocab] mean of 1 − (logit/cap)² in the base model.
        streams: name of a norm to what enters it in the base model, a tensor [answer, d_model] per row.
        logits: of each contrast's tokens in the base model.
        base, edited: each contrast's value.
        positions: how many.
    """

    change: Tensor
    slope: Tensor
    streams: dict[str | int, list[Tensor]]
    logits: dict[int, Tensor]
    base: Float[np.ndarray, " contrast"]
    edited: Float[np.ndarray, " contrast"]
    positions: int = 0


def _truth(rows: Rows, lens: Lens, parts: Sequence[_Part], contrasts: Sequence[_Contrast]) -> _Truth:
    """Run the rows without the edit, with each part alone, and with all of it where there is a contrast."""
    device = lens.weight.device
    found = _Truth(
        change=torch.zeros(len(parts), lens.vocabulary, device=device),
        slope=torch.zeros(lens.vocabulary, device=device),
        streams={name: [torch.empty(0)] * len(rows.encoded) for name in lens.modules},
        logits={},
        base=np.zeros(len(contrasts)),
        edited=np.zeros(len(contrasts)),
    )
    edit = rows.run.edit.restricted().to(rows.model.device).requires_grad_(False)
    stored = {(site, name): v.detach().clone() for site in edit.sites for name, v in edit.site(site).vectors.items()}  # type: ignore[arg-type]
    _set(edit, {})
    with attach(edit, rows.model, rows.backend) as attached, _bar(len(parts), rows) as bar:
        for places, batch in rows.batches(BATCH):
            _one_batch(found, lens, _Bench(edit, stored, attached, batch, places), parts, contrasts, bar)
        attached.check_live()
    found.change /= found.positions
    found.slope /= found.positions
    return found


@dataclass(frozen=True, eq=False)
class _Bench:
    """A batch, and an edit on the model that can be made to act in part."""

    edit: JoLA
    stored: dict[tuple[str, str], Tensor]
    attached: Attachment
    batch: Batch
    places: list[int]

    @property
    def read(self) -> Bool[Tensor, "row kept"]:
        """The positions that predict answer tokens, out of the last ``kept``."""
        return F.pad(self.batch.labels != IGNORED, (0, 1))

    def whole(self) -> dict[tuple[str, str], Tensor]:
        """All of the edit's vectors."""
        return self.stored

    def alone(self, part: _Part) -> dict[tuple[str, str], Tensor]:
        """The vectors of some heads, 0 elsewhere."""
        vectors = self.stored["heads", part.kind]
        kept = torch.zeros_like(vectors)
        kept[part.layer, list(part.heads)] = vectors[part.layer, list(part.heads)]
        return {("heads", part.kind): kept}

    def logits(self, vectors: dict[tuple[str, str], Tensor], begun: AbstractContextManager[Any]) -> Tensor:
        """[position, vocab] float32 with only these vectors, in a pass inside ``begun``."""
        model, batch, read = self.attached.model, self.batch, self.read
        _set(self.edit, vectors)
        try:
            with begun:
                output = model.forward(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask)
        finally:
            _set(self.edit, {})
        logits: Tensor = output.logits
        # In recorded and restarted passes the marked positions alone are given.
        marked = logits.shape[:2] == (1, int(read.sum()))
        return (logits[0] if marked else logits[:, -read.shape[1] :][read]).float()


def _one_batch(
    found: _Truth, lens: Lens, bench: _Bench, parts: Sequence[_Part], contrasts: Sequence[_Contrast], bar: Any
) -> None:
    counts = (bench.batch.labels != IGNORED).sum(1).tolist()
    with _inputs(lens.modules) as kept, _recording(bench) as recording:
        base = bench.logits({}, nullcontext())
    for name, stream in kept.items():
        marked = stream[:, -bench.read.shape[1] :][bench.read].float().to(lens.weight.device)
        for row, own in zip(bench.places, marked.split(counts), strict=True):
            found.streams[name][row] = own
    found.positions += len(base)
    if lens.cap is not None:
        found.slope += (1 - (base / lens.cap).square()).sum(0).to(found.slope)
    for index, part in enumerate(parts):
        if part.heads:
            logits = bench.logits(bench.alone(part), _from(recording, part.layer))
            found.change[index] += (logits - base).sum(0).to(found.change)
        bar.update()
    own = [(i, contrast) for i, contrast in enumerate(contrasts) if contrast.row in bench.places]
    if own:
        edited = bench.logits(bench.whole(), _from(recording, 0)).split(counts)
        rows = base.split(counts)
        for i, contrast in own:
            row = bench.places.index(contrast.row)
            found.base[i], found.edited[i] = contrast.of(rows[row]), contrast.of(edited[row])
            found.logits[i] = rows[row][contrast.place, list(contrast.tokens)]


@contextmanager
def _recording(bench: _Bench) -> Iterator[Recording | None]:
    """The next pass is kept, so that others can begin at a layer; None where the architecture does not allow that."""
    recording = None
    with ExitStack() as stack:
        try:
            recording = stack.enter_context(recorded(bench.attached.model, bench.attached, read=bench.read))
        except RestartError as error:
            logger.info("readout: whole passes, since %s", error)
        yield recording


def _from(recording: Recording | None, layer: int) -> AbstractContextManager[None]:
    return nullcontext() if recording is None else restarted(recording, layer)


def _set(edit: JoLA, vectors: Mapping[tuple[str, str], Tensor]) -> None:
    """Give an edit these vectors, and 0 for all others."""
    for site in edit.sites:
        for name, vector in edit.site(site).vectors.items():  # type: ignore[arg-type]
            vector.data.copy_(vectors.get((site, name), torch.zeros(())))


def _bar(parts: int, rows: Rows) -> Any:
    from tqdm.auto import tqdm

    total = parts * math.ceil(len(rows.encoded) / BATCH)
    return tqdm(total=total, desc="readout", disable=logger.getEffectiveLevel() > 30, leave=False)


# -- numbers -----------------------------------------------------------------------------------------------------------


def _table(
    lens: Lens, parts: Sequence[_Part], truth: _Truth | None, tokens: int, draws: int, generator: torch.Generator
) -> dict[str, Any]:
    """The fields of :class:`Readout` that have an entry per vector."""
    found: dict[str, list[Any]] = {name: [] for name in _PER_VECTOR}
    weights: tuple[int, Tensor] | None = None
    for index, part in enumerate(parts):
        if weights is None or weights[0] != part.layer:
            weights = part.layer, output_weights(lens.model, part.layer)
        written = part.beside_random(weights[1], draws, generator)
        change = lens.logits(lens.through(written, part.layer))
        true = None if truth is None else truth.change[index] - truth.change[index].mean()
        entry = {
            "labels": part.label, "kinds": part.kind, "units": part.unit, "layers": part.layer,
            "norm": float(written[0].norm()), "stream": part.stream,
            **_ranked(lens, change[0], true, tokens), **_beside_null(change), **_beside_truth(change, true),
        }  # fmt: skip
        for name, value in entry.items():
            found[name].append(value)
    return {name: _stacked(name, values, tokens, draws) for name, values in found.items()}


def _ranked(
    lens: Lens, change: Float[Tensor, " vocab"], true: Float[Tensor, " vocab"] | None, k: int
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, sign in (("top", 1), ("bottom", -1)):
        ids = (sign * change).topk(k).indices
        found[f"{name}_ids"] = ids.cpu().numpy()
        found[f"{name}_tokens"] = tuple(visible(lens.model.tokenizer, token) for token in ids.tolist())
        found[f"{name}_delta"] = change[ids].cpu().numpy()
        found[f"{name}_true"] = np.full(k, np.nan, np.float32) if true is None else true[ids].cpu().numpy()
    return found


def _beside_null(change: Float[Tensor, "k vocab"]) -> dict[str, Any]:
    """Peak and kurtosis of the first row, and of the others, which are its null."""
    peaks = change.abs().amax(-1).cpu().numpy()
    scaled = change / change.std(-1, keepdim=True, correction=0)
    kurtosis = (scaled.pow(4).mean(-1) - 3).cpu().numpy()
    return {
        "peak": peaks[0], "null_peak": peaks[1:], "p": _p_values(peaks[:1], peaks[None, 1:])[0],
        "kurtosis": kurtosis[0], "null_kurtosis": kurtosis[1:],
        "p_kurtosis": _p_values(kurtosis[:1], kurtosis[None, 1:])[0],
    }  # fmt: skip


def _beside_truth(change: Float[Tensor, "k vocab"], true: Float[Tensor, " vocab"] | None) -> dict[str, Any]:
    from scipy.stats import rankdata

    if true is None:
        return {"pearson": math.nan, "spearman": math.nan, "null_pearson": np.full(len(change) - 1, np.nan, np.float32)}
    lens, model = change.double().cpu().numpy(), true.double().cpu().numpy()
    r = _correlations(lens, model)
    ranks = _correlations(rankdata(lens[:1], axis=1), rankdata(model))
    return {"pearson": r[0], "spearman": ranks[0], "null_pearson": r[1:].astype(np.float32)}


def _correlations(several: Float[np.ndarray, "k vocab"], one: Float[np.ndarray, " vocab"]) -> Float[np.ndarray, " k"]:
    """Pearson's r of each row with ``one``; NaN where either is constant."""
    several, one = several - several.mean(1, keepdims=True), one - one.mean()
    sizes = np.linalg.norm(several, axis=1) * np.linalg.norm(one)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(sizes > 0, several @ one / sizes, np.nan))


def _stacked(name: str, values: list[Any], tokens: int, draws: int) -> Any:
    """Text as tuples, numbers as arrays, also where there is no vector at all."""
    if name in ("labels", "kinds", "units", "top_tokens", "bottom_tokens"):
        return tuple(values)
    whole = name == "layers" or name.endswith("_ids")
    inner = (draws,) if name.startswith("null_") else (tokens,) if name.startswith(("top_", "bottom_")) else ()
    return np.array(values, dtype=np.int64 if whole else np.float32).reshape(len(values), *inner)


def _attribution(
    run: Run,
    lens: Lens,
    truth: _Truth | None,
    glance: _Glance,
    contrasts: Sequence[_Contrast],
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


def _towards(lens: Lens, truth: _Truth, index: int, contrast: _Contrast) -> Float[Tensor, " d_model"]:
    """The gradient of a contrast at the stream that enters the final norm."""
    device = lens.weight.device
    tokens, weights = torch.tensor(contrast.tokens, device=device), torch.tensor(contrast.weights, device=device)
    given = lens.towards(tokens, weights, truth.logits[index].to(device))
    stream = truth.streams["final"][contrast.row][contrast.place]
    norm = lens.norms["final"]
    return norm.backward(given[None], norm.at(stream[None]))[0]


def _p_values(found: Float[np.ndarray, "*n"], null: Float[np.ndarray, "*n draw"]) -> Float[np.ndarray, "*n"]:
    """(1 + draws that reach it)/(1 + draws), elementwise; 1 where there is nothing."""
    reached = ~(np.asarray(null) < np.asarray(found)[..., None])
    return np.asarray((1 + reached.sum(-1)) / (1 + null.shape[-1]))


def _ends(null: Float[np.ndarray, "*n draw"]) -> Float[np.ndarray, "*n"]:
    """What 95 % of the draws stay below; NaN where one is."""
    return np.asarray(np.quantile(null, 0.95, axis=-1))


def _grid(mask: Bool[np.ndarray, "layer head"]) -> list[list[tuple[int, int]]]:
    return [[(layer, head) for head in range(mask.shape[1])] for layer in range(mask.shape[0])]


def _group(run: Run) -> int:
    """Query heads per key-value head, where heads share one."""
    shape = run.edit.shape
    return shape.heads // shape.kv_heads if shape.kv_heads < shape.heads else 0


# -- tokens ------------------------------------------------------------------------------------------------------------


def visible(tokenizer: Any, token: int) -> str:
    """A token's text with its white space shown: "·the", "↵"; "#151700" where the tokenizer has none."""
    if tokenizer is None or token >= len(tokenizer) or (piece := tokenizer.convert_ids_to_tokens(token)) is None:
        return f"#{token}"
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if piece.startswith("▁") and not text.startswith(" "):  # SentencePiece drops the space of a first token
        text = f" {text}"
    return _marked(piece if not text or "\ufffd" in text else text)


def _marked(text: str) -> str:
    return "".join(MARKS.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)
