"""What an offset writes: the logit lens of it (:mod:`jola_interp.analysis.lens`), beside what it truly does.

    r = corr_vocabulary(lens of v, true change of the logits with v)          v = g_a·a W_O[l, h]

r_p of the lens are the streams of the base model at the positions p that predict answer tokens, so that the lens is
what the offset does to first order if no later layer answers to it. Later layers do answer. So the same part of the
edit is also put alone into the model, and the change of its logits stands beside the lens with r. How much r says is
told by random vectors in its place, through the same W_O and as long: the lens of each is held against the change that
it makes itself, since the lens may be as good for any vector of that size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jola_interp.analysis.attribution import Attributed, attribute
from jola_interp.analysis.contrast import contrasts_of, words_of
from jola_interp.analysis.draws import ends, p_values
from jola_interp.analysis.lens import Lens
from jola_interp.analysis.parts import Drawn, Glance, Part, drawn, glance_at, knobs, parts_of
from jola_interp.analysis.rows import Split, prepared, require_heads
from jola_interp.analysis.summary import title_of
from jola_interp.analysis.token_texts import token_name
from jola_interp.analysis.true_change import Truth, true_change
from jola_interp.models import Model
from jola_interp.runs import Run
from jola_interp.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

TRUSTED = 0.5
"""Tokens are listed where lens and true change correlate at least so much (Pearson, over the vocabulary)."""
LEVEL = 0.05
"""And where their largest Δlogit is beyond the null's at this p; 20 random vectors are the fewest that can show it."""


@dataclass(frozen=True, eq=False)
class Readout(Attributed):
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
        null_pearson: correlation of the null's lens with the true change of the vector itself.
        random_pearson: the null of r: correlation of the lens of some of these random vectors with the true change that
            each makes itself; None where that was not measured.
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
    random_pearson: Float[np.ndarray, "vector random"] | None = None

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
        return ends(self.null_peak)

    @property
    def null_pearson_95(self) -> Float[np.ndarray, " vector"]:
        """What |r| of 95 % of the draws with the true change of the vector itself stays below."""
        return ends(np.abs(self.null_pearson))

    @property
    def p_pearson(self) -> Float[np.ndarray, " vector"]:
        """(1 + random vectors whose lens is as right)/(1 + random vectors): p of r beside its null; NaN without one."""
        if self.random_pearson is None:
            return np.full(len(self), np.nan)
        return np.where(np.isnan(self.pearson), np.nan, p_values(self.pearson, self.random_pearson))

    @property
    def random_range(self) -> Float[np.ndarray, "vector 3"]:
        """Least, median and largest of the null of r; NaN without one."""
        if self.random_pearson is None or not self.random_pearson.shape[1]:
            return np.full((len(self), 3), np.nan)
        return np.asarray(np.quantile(self.random_pearson, (0, 0.5, 1), axis=1).T)

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
            "random_pearson": self.random_range[:, 1], "p_pearson": self.p_pearson,
            "peak": self.peak, "null_peak_95": self.null_peak_95, "p": self.p,
            "kurtosis": self.kurtosis, "null_kurtosis_95": ends(self.null_kurtosis), "p_kurtosis": self.p_kurtosis,
            "top": self._listed(self.top_tokens, self.top_delta),
            "bottom": self._listed(self.bottom_tokens, self.bottom_delta),
        }  # fmt: skip
        return pd.DataFrame(columns)

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
        return (lens, told, null, self._beside_r())

    def _beside_r(self) -> str:
        """What r stands beside, and how many vectors have a larger one."""
        held = 0 if self.random_pearson is None else self.random_pearson.shape[1]
        known = np.isfinite(self.pearson)
        if not held or not known.any():
            return "r itself has no null here: the lens of a random vector may agree with its effect too."
        above = int((self.p_pearson[known] <= 1 / (1 + held)).sum())
        return (
            f"Null of r: {held} such random vectors for each, every one's lens held against the change that it makes "
            f"itself. r is above all of its own in {above} of {known.sum()} vectors; "
            f"{known.sum() / (1 + held):.1f} would be by chance."
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

    def _take(self, chosen: Int[np.ndarray, " chosen"]) -> Readout:
        """The vectors at some places; what is of the whole edit stays."""
        found: dict[str, Any] = {}
        for name in _PER_VECTOR:
            value = getattr(self, name)
            if value is not None:
                found[name] = value[chosen] if isinstance(value, np.ndarray) else tuple(value[i] for i in chosen)
        return replace(self, **found)


_PER_VECTOR = (
    "labels", "kinds", "units", "layers", "norm", "stream", "top_ids", "bottom_ids", "top_tokens", "bottom_tokens",
    "top_delta", "bottom_delta", "top_true", "bottom_true", "peak", "kurtosis", "null_peak", "null_kurtosis", "p",
    "p_kurtosis", "pearson", "spearman", "null_pearson", "random_pearson",
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
    held: int = 3,
    rows: int = 16,
    split: Split = "test",
    contrast: tuple[str, str] | None = None,
    seed: int = 0,
) -> Readout:
    """Δlogits of what the edit writes: of single heads, of every layer's offsets together, and of its scales.

    The module says which formula. Costs (2·heads + layers)·(1 + held) passes over the rows, each from its layer on, and
    three more; holds as many vocabularies of numbers. In bfloat16 small changes drown in rounding, which lowers the
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
        held: how many of them, at most, are put into the model too, so that r has its null; each is a pass more for
            every vector. 0 is none.
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
    if isinstance(held, bool) or not isinstance(held, int) or held < 0:
        raise ValueError(f"held must be an integer ≥ 0; got {held!r}")
    held = min(held, draws)
    require_heads(run)
    vectors = knobs(run.edit)
    if task is None and (contrast is not None or "additive" not in vectors):
        wanted = "a contrast" if contrast is not None else "this edit, which has no offsets,"
        raise ValueError(f"task: {wanted} can only be read on the rows of a task")
    read = None if task is None else prepared(run, task, model, split=split, rows=rows, what="readout")
    lens = Lens(run.ready(model, "readout") if read is None else read.model)
    contrasts = [] if read is None else contrasts_of(read, contrast)
    glance = None if read is None else glance_at(read, contrasts)
    parts = parts_of(run, lens.model, vectors, glance, heads)
    generator = torch.Generator().manual_seed(seed)
    beside = list(zip(parts, drawn(lens.model, parts, draws, generator), strict=True))
    truth = None if read is None else true_change(read, lens, beside, held, contrasts)
    if truth is not None:
        lens.place({name: torch.cat(streams) for name, streams in truth.streams.items()}, truth.slope)
    found = _table(lens, beside, truth, min(tokens, lens.vocabulary), draws, held)
    said = "" if not contrasts else words_of(contrast)
    attributed = attribute(run, lens, truth, cast(Glance, glance), contrasts, draws, generator) if contrasts else {}
    return Readout(
        title=title_of(run),
        split=split if read is not None else "",
        rows=len(read.encoded) if read is not None else 0,
        positions=0 if truth is None else truth.positions,
        draws=draws,
        mask=run.edit.site("heads").mask.cpu().numpy(),
        group=run.edit.shape.group,
        contrast=said,
        **found,
        **attributed,
    )


def _table(
    lens: Lens, parts: Sequence[tuple[Part, Drawn]], truth: Truth | None, tokens: int, draws: int, held: int
) -> dict[str, Any]:
    """The fields of :class:`Readout` that have an entry per vector."""
    found: dict[str, list[Any]] = {name: [] for name in _PER_VECTOR}
    for index, (part, beside) in enumerate(parts):
        change = lens.logits(lens.through(beside.written, part.layer))
        true = None if truth is None else truth.change[index] - truth.change[index].mean(-1, keepdim=True)
        entry = {
            "labels": part.label, "kinds": part.kind, "units": part.unit, "layers": part.layer,
            "norm": float(beside.written[0].norm()), "stream": part.stream,
            **_ranked(lens, change[0], None if true is None else true[0], tokens),
            **_beside_null(change), **_beside_truth(change, true),
        }  # fmt: skip
        for name, value in entry.items():
            found[name].append(value)
    held = 0 if truth is None else held
    stacked = {name: _stacked(name, values, tokens, draws, held) for name, values in found.items()}
    return stacked if held else stacked | {"random_pearson": None}


def _ranked(
    lens: Lens, change: Float[Tensor, " vocab"], true: Float[Tensor, " vocab"] | None, k: int
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, sign in (("top", 1), ("bottom", -1)):
        ids = (sign * change).topk(k).indices
        found[f"{name}_ids"] = ids.cpu().numpy()
        found[f"{name}_tokens"] = tuple(token_name(token, lens.model.tokenizer) for token in ids.tolist())
        found[f"{name}_delta"] = change[ids].cpu().numpy()
        found[f"{name}_true"] = np.full(k, np.nan, np.float32) if true is None else true[ids].cpu().numpy()
    return found


def _beside_null(change: Float[Tensor, "k vocab"]) -> dict[str, Any]:
    """Peak and kurtosis of the first row, and of the others, which are its null."""
    peaks = change.abs().amax(-1).cpu().numpy()
    scaled = change / change.std(-1, keepdim=True, correction=0)
    kurtosis = (scaled.pow(4).mean(-1) - 3).cpu().numpy()
    return {
        "peak": peaks[0], "null_peak": peaks[1:], "p": p_values(peaks[:1], peaks[None, 1:])[0],
        "kurtosis": kurtosis[0], "null_kurtosis": kurtosis[1:],
        "p_kurtosis": p_values(kurtosis[:1], kurtosis[None, 1:])[0],
    }  # fmt: skip


def _beside_truth(change: Float[Tensor, "k vocab"], true: Float[Tensor, "held vocab"] | None) -> dict[str, Any]:
    """r of the first row with its own true change, of the others with that too, and of a few with their own."""
    from scipy.stats import rankdata

    if true is None:
        unknown = np.full(len(change) - 1, np.nan, np.float32)
        return {"pearson": math.nan, "spearman": math.nan, "null_pearson": unknown, "random_pearson": unknown[:0]}
    lens, model = change.double().cpu().numpy(), true.double().cpu().numpy()
    r = _correlations(lens, model[0])
    ranks = _correlations(rankdata(lens[:1], axis=1), rankdata(model[0]))
    own = [_correlations(lens[[i]], model[i])[0] for i in range(1, len(model))]
    return {
        "pearson": r[0],
        "spearman": ranks[0],
        "null_pearson": r[1:].astype(np.float32),
        "random_pearson": np.array(own, dtype=np.float32),
    }


def _correlations(several: Float[np.ndarray, "k vocab"], one: Float[np.ndarray, " vocab"]) -> Float[np.ndarray, " k"]:
    """Pearson's r of each row with ``one``; NaN where either is constant."""
    several, one = several - several.mean(1, keepdims=True), one - one.mean()
    sizes = np.linalg.norm(several, axis=1) * np.linalg.norm(one)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(sizes > 0, several @ one / sizes, np.nan))


def _stacked(name: str, values: list[Any], tokens: int, draws: int, held: int) -> Any:
    """Text as tuples, numbers as arrays, also where there is no vector at all."""
    if name in ("labels", "kinds", "units", "top_tokens", "bottom_tokens"):
        return tuple(values)
    whole = name == "layers" or name.endswith("_ids")
    widths = {"null": draws, "random": held, "top": tokens, "bottom": tokens}
    inner = [widths[first]] if (first := name.split("_")[0]) in widths else []
    return np.array(values, dtype=np.int64 if whole else np.float32).reshape(len(values), *inner)
