"""How far an edit moves the heads' outputs z, and what that writes to the stream.

    local  Δz = edit(z) − z                on the z of one edited pass: what the edit itself does; 0 where gates are 0
    total  Δz = z'(edited) − z(base)       between two passes: closed heads move too, by what reaches them from below

Everything is summed up while the rows pass by: memory does not grow with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jola_interp.activations import unit_rms
from jola_interp.analysis.rows import Rows, Seen, Split, output_weights, prepared, require_heads, watched
from jola_interp.analysis.summary import title_of
from jola_interp.analysis.usage import POST_NORMS
from jola_interp.backends.restart import blocks
from jola_interp.edits.base import unit_label
from jola_interp.edits.jola import JoLA
from jola_interp.evaluation.side_effects import random_control
from jola_interp.models import Model
from jola_interp.runs import Run
from jola_interp.tasks import Task

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

Notion = Literal["local", "total"]
Measure = Literal["norm", "cosine", "residual", "delta", "size"]
"""``norm`` ‖Δz‖/‖z‖ · ``cosine`` cos(z, z') · ``residual`` ‖Δz W_O‖/‖stream‖ · ``delta`` ‖Δz‖ · ``size`` ‖z‖. z is
what Δz starts from: in the edited pass for local shifts, in the base model's for total ones. The stream is always what
enters the block in the base model."""
LayerMeasure = Literal["residual", "cosine"]
"""Of Σ_h Δz_h W_O, all that a layer's heads write: its norm over the stream's, and its cosine with the stream."""
NOTIONS: tuple[Notion, ...] = get_args(Notion)
MEASURES: tuple[Measure, ...] = get_args(Measure)
LAYER_MEASURES: tuple[LayerMeasure, ...] = get_args(LayerMeasure)
CLASSES = ("first", "prompt", "answer")
"""The first token of a row, on which much of the attention rests, is in a class of its own."""
KINDS = ("first", "special", "word start", "word continuation", "digit", "punctuation", "space or newline")
MEANS = ("mean", "layer_mean", "position", "answer", "kind")
"""Fields that are kept of every random edit."""
SOURCES = ("local", "total", "random_local", "random_total")
"""Keys of the tables: the Run's edit, and edits of random directions with the same norms and gates, passed alike."""
PLANES_BY = "local ‖Δz‖/‖z‖"
"""What the heads with planes are the largest of; tables of earlier versions have those that write most."""
RMS_ROWS = 8
"""Rows from which rms(z) is taken to choose the heads whose planes are kept."""


@dataclass(frozen=True, eq=False)
class Plane:
    """A head's tokens on the first two principal components of its base activations.

    Attributes:
        label, layer, head: which head.
        components: [2, d_head] orthonormal, of the z of the base model at all tokens but first ones.
        explained: [2] share of the variance of those z.
        base, edited: [token, 2] z of the base model, z' of the edited pass: total shifts.
        answer: [token] whether it is of the answer; else of the prompt.
        offset: [2] g_a·a on the components; 0 without an offset.
        offset_share: share of ‖g_a·a‖² that lies in the plane; NaN without an offset.
        moved_share: share of Σ‖z' − z‖² of the drawn tokens that lies in the plane; NaN where nothing moved.
    """

    label: str
    layer: int
    head: int
    components: Float[np.ndarray, "2 d_head"]
    explained: Float[np.ndarray, " 2"]
    base: Float[np.ndarray, "token 2"]
    edited: Float[np.ndarray, "token 2"]
    answer: Bool[np.ndarray, " token"]
    offset: Float[np.ndarray, " 2"]
    offset_share: float
    moved_share: float

    @property
    def chance(self) -> float:
        """2/d_head: the share of a random direction that lies in a plane."""
        return min(1.0, 2 / int(self.components.shape[1]))


@dataclass(frozen=True, eq=False)
class Shifts:
    """How far activations move, with the same for random edits: means over a few draws, and each draw.

    Mappings have the keys of :data:`SOURCES`. A ratio or cosine that a token does not have (‖z‖ = 0) is left out of its
    mean; NaN stands where no token is left.

    Attributes:
        title: model and task.
        split, rows, dtype: which rows, how many, and the precision of the model's activations.
        normalised: whether the model normalises what attention writes before it joins the stream.
        mask: which heads are editable.
        group: query heads that share a key-value head, or 0.
        tokens: how many tokens of each class.
        mean, sd: over tokens of a class, by :data:`MEASURES`; sd divides by their number.
        layer_mean, layer_sd: the same of Σ_h Δz_h W_O, by :data:`LAYER_MEASURES`.
        position_bins, position_tokens, position: mean ‖Δz‖/‖z‖ of a layer (its heads side by side, one vector) by place
            in the row, from 0; bins are powers of two.
        answer_bins, answer_tokens, answer: the same by place from the answer's start (0 is its first token); first
            tokens of rows are left out.
        kind_tokens, kind: the same by kind of token, :data:`KINDS`.
        plane_heads: labels of the heads with planes, the largest first.
        plane_arrays: fields of their :class:`Plane`, stacked; see :attr:`planes`.
        planes_by: what they are the largest of; None: of what they write, as earlier versions chose them.
        draws: "mean/random_local" and so on to that array for every random edit, [draw, …]; None: there was one.
    """

    title: str
    split: str
    rows: int
    dtype: str
    normalised: bool
    mask: Bool[np.ndarray, "layer head"]
    group: int
    tokens: Int[np.ndarray, " class"]
    mean: Mapping[str, Float[np.ndarray, "measure class layer head"]] = field(repr=False)
    sd: Mapping[str, Float[np.ndarray, "measure class layer head"]] = field(repr=False)
    layer_mean: Mapping[str, Float[np.ndarray, "measure class layer"]] = field(repr=False)
    layer_sd: Mapping[str, Float[np.ndarray, "measure class layer"]] = field(repr=False)
    position_bins: tuple[str, ...]
    position_tokens: Int[np.ndarray, " bin"]
    position: Mapping[str, Float[np.ndarray, "bin layer"]] = field(repr=False)
    answer_bins: tuple[str, ...]
    answer_tokens: Int[np.ndarray, " bin"]
    answer: Mapping[str, Float[np.ndarray, "bin layer"]] = field(repr=False)
    kind_tokens: Int[np.ndarray, " kind"]
    kind: Mapping[str, Float[np.ndarray, "kind layer"]] = field(repr=False)
    plane_heads: tuple[str, ...]
    plane_arrays: Mapping[str, np.ndarray] = field(repr=False)
    planes_by: str | None = None
    draws: Mapping[str, np.ndarray] | None = field(default=None, repr=False)

    @property
    def labels(self) -> np.ndarray:
        """[layer, head] such as "L3H7"."""
        layers, heads = self.mask.shape
        return np.array([[unit_label("heads", i, j) for j in range(heads)] for i in range(layers)], dtype=object)

    @property
    def planes(self) -> tuple[Plane, ...]:
        """One per head that was asked for, the largest first."""
        arrays, found = self.plane_arrays, []
        for place, label in enumerate(self.plane_heads):
            layer, head = (int(number) for number in label[1:].split("H"))
            own = {name: array[place] for name, array in arrays.items() if name != "answer"}
            own |= {name: float(own[name]) for name in ("offset_share", "moved_share")}
            found.append(Plane(label=label, layer=layer, head=head, answer=arrays["answer"], **own))
        return tuple(found)

    def of(
        self, which: Notion, measure: Measure, *, random: bool = False, sd: bool = False
    ) -> Float[np.ndarray, "class layer head"]:
        """One measure of one notion: its mean (or sd), of the Run's edit or of the random one."""
        return np.asarray((self.sd if sd else self.mean)[source_of(which, random)][MEASURES.index(measure)])

    def of_layer(
        self, which: Notion, measure: LayerMeasure, *, random: bool = False
    ) -> Float[np.ndarray, "class layer"]:
        """The mean of one measure of what all heads of a layer write together."""
        return np.asarray(self.layer_mean[source_of(which, random)][LAYER_MEASURES.index(measure)])

    def drawn(self, name: str, which: Notion) -> Float[np.ndarray, "draw ..."]:
        """One of the fields that are means, such as ``position``, under every random edit."""
        source = source_of(which, random=True)
        known = self.draws or {}
        return np.asarray(known.get(f"{name}/{source}", getattr(self, name)[source][None]))

    def beyond(self, which: Notion, measure: Measure) -> tuple[int, int]:
        """Heads whose mean over prompt and answer tokens no random edit reaches from either side; and of how many."""
        own = self.pooled(which, measure)
        random = np.stack([self._pooled(one[MEASURES.index(measure)][1:]) for one in self.drawn("mean", which)])
        known = np.isfinite(own) & np.isfinite(random).all(0) & ((own != 0) | (random != 0).any(0))
        rounding = 1e-4 * np.abs(random).max(0)  # offsets alone are as long by construction
        outside = (own < random.min(0) - rounding) | (own > random.max(0) + rounding)
        return int((outside & known).sum()), int(known.sum())

    def random_words(self) -> str:
        """What the random edits are, and how many."""
        count = len(self.drawn("mean", "local"))
        several = f"mean of {count} draws; bands and thin bars: from the least to the largest"
        draws = several if count > 1 else "one draw"
        return f"Random directions: edits with the same norms and gates, passed alike ({draws})."

    def pooled(self, which: Notion, measure: Measure, *, random: bool = False) -> Float[np.ndarray, "layer head"]:
        """A mean over prompt and answer tokens together, first tokens left out."""
        return self._pooled(self.of(which, measure, random=random)[1:])

    def _pooled(self, values: Float[np.ndarray, "2 layer head"]) -> Float[np.ndarray, "layer head"]:
        weights = np.where(np.isfinite(values), self.tokens[1:, None, None], 0).astype(float)
        total = weights.sum(0)
        sums = (np.nan_to_num(values) * weights).sum(0)
        return np.asarray(np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0))

    def top(self, k: int, which: Notion = "local", measure: Measure = "residual") -> tuple[str, ...]:
        """Labels of the ``k`` heads with the largest mean over prompt and answer tokens, the largest first."""
        values = np.nan_to_num(self.pooled(which, measure), nan=-np.inf)
        return tuple(self.labels.ravel()[np.argsort(-values, axis=None, kind="stable")[:k]])

    def tokens_words(self) -> str:
        """How many tokens of each class, in words."""
        first, prompt, answer = (int(count) for count in self.tokens)
        return (
            f"n = {prompt:,} prompt, {answer:,} answer and {first:,} first tokens of {self.rows:,} {self.split} rows."
        )

    def caveats(self) -> tuple[str, ...]:
        """What of the model makes the numbers less than they seem, in words."""
        found = []
        rounding = torch.finfo(getattr(torch, self.dtype)).eps / 2
        if rounding > 1e-6:
            found.append(f"Activations are {self.dtype}, which rounds by up to {rounding:.1g} of a number.")
        if self.normalised:
            found.append(
                "The model normalises what attention writes before it joins the stream: told is what comes in."
            )
        return tuple(found)

    def to_frame(self) -> pd.DataFrame:
        """One row per notion, edit (trained or random), class and head: tokens, each measure and its sd."""
        import pandas as pd

        layers, heads = self.mask.shape
        at = np.indices((len(CLASSES), layers, heads)).reshape(3, -1)  # class, layer, head
        frames = []
        for source in SOURCES:
            columns: dict[str, Any] = {
                "notion": source.removeprefix("random_"),
                "edit": "random" if source.startswith("random_") else "trained",
                "tokens_of": np.array(CLASSES, dtype=object)[at[0]],
                "label": self.labels[at[1], at[2]],
                "layer": at[1],
                "head": at[2],
                "tokens": self.tokens[at[0]],
            }
            for place, name in enumerate(MEASURES):
                columns |= {name: self.mean[source][place].ravel(), f"{name}_sd": self.sd[source][place].ravel()}
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)


def source_of(which: Notion, random: bool = False) -> str:
    """The key of a notion, of the Run's edit or of the random one.

    Raises:
        ValueError: an unknown notion.
    """
    if which not in NOTIONS:
        raise ValueError(f"which must be one of {', '.join(NOTIONS)}; got {which!r}")
    return f"random_{which}" if random else which


@torch.no_grad()
def shifts(
    run: Run,
    task: str | Task,
    model: str | Model | None = None,
    *,
    split: Split = "test",
    rows: int = 64,
    heads: int = 6,
    tokens: int = 300,
    batch_size: int = 4,
    seed: int = 0,
    controls: int = 5,
) -> Shifts:
    """‖Δz‖/‖z‖, cos(z, z') and ‖Δz W_O‖/‖stream‖ of every head, local and total, beside those of random edits.

    Three passes over the rows: the base model, the edited one, and one under an edit whose vectors have the same norms
    in random directions, with the same gates; and two more for every further draw of that. ‖Δz_h W_O‖ is
    √(Δz_h G_h Δz_hᵀ) with G = W_O W_Oᵀ in float32. Where an architecture has a further norm behind W_O (Gemma 3,
    OLMo 2), what is told is what reaches that norm. In bfloat16 rounding alone moves a head by some thousandths of its
    norm: hand in the model in float32 for smaller shifts.

    Args:
        run: whose kept edit is measured, at the gates of inference.
        task: whose rows to read, prompt and answer; a name or a Task.
        model: None is the Run's own.
        split: ``test`` or ``validation``.
        rows: the first so many rows of it.
        heads: how many heads to keep a plane for: those with the largest local ‖Δz‖/‖z‖, which the maps show, taken
            from rms(z) of a few rows as (‖g_a·a‖²/rms(z)² + ‖g_m·m‖²)^½/√d_head.
        tokens: how many tokens, evenly drawn from prompts and answers, a plane shows at most.
        batch_size: rows in one pass.
        seed: of the random directions.
        controls: how many draws of them.

    Raises:
        ValueError: a field outside its range, an empty split, or an edit that does not act on heads.
    """
    least = {"heads": (heads, 0), "tokens": (tokens, 1), "batch_size": (batch_size, 1), "seed": (seed, 0)}
    least["controls"] = (controls, 1)
    for name, (value, low) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name} must be an integer ≥ {low}; got {value!r}")
    require_heads(run)
    read = prepared(run, task, model, split=split, rows=rows, what="shifts")
    tally = _Tally(read, heads, tokens)
    for seen in watched(read, batch_size, other=random_control(run.edit, seed)):
        tally.add(seen)
        del seen  # before the next passes begin
    for further in range(1, controls):
        tally.begin()
        for seen in watched(read, batch_size, edit=random_control(run.edit, seed + further)):
            tally.add_random(seen)
            del seen
    return tally.table(split)


# -- one batch ---------------------------------------------------------------------------------------------------------


class _Tally:
    """All sums of :func:`shifts`, batch by batch."""

    def __init__(self, read: Rows, heads: int, tokens: int):
        self.read, self.layers = read, range(read.run.edit.shape.layers)
        self.grams = [_gram(output_weights(read.model, layer)) for layer in self.layers]
        self.places = _Places(read)
        groups = {"class": len(CLASSES), "kind": len(KINDS)}
        groups |= {"position": len(self.places.position_bins), "answer": len(self.places.answer_bins)}
        self.counts = {name: np.zeros(size, dtype=np.int64) for name, size in groups.items()}
        self.moves = {source: _Moves(groups, read.run.edit) for source in SOURCES}
        self.groups, self.draws = groups, [self.moves]
        self.planes = _Planes(read, heads, tokens)

    def add(self, seen: Seen) -> None:
        """Count a batch in."""
        groups = self.places.of(seen)
        for name, found in groups.items():
            self.counts[name] += np.bincount(found[found >= 0].numpy(), minlength=len(self.counts[name]))
        assert seen.other_before is not None and seen.other_after is not None
        pairs = {
            "local": (seen.before, seen.after),
            "total": (seen.base, seen.after),
            "random_local": (seen.other_before, seen.other_after),
            "random_total": (seen.base, seen.other_after),
        }
        self._count(seen, groups, pairs)
        self.planes.add(seen, groups["class"])

    def begin(self) -> None:
        """What is added from now on is of another random edit."""
        self.draws.append({source: _Moves(self.groups, self.read.run.edit) for source in SOURCES[2:]})

    def add_random(self, seen: Seen) -> None:
        """Count in a batch whose edited pass is under a random edit."""
        pairs = {"random_local": (seen.before, seen.after), "random_total": (seen.base, seen.after)}
        self._count(seen, self.places.of(seen), pairs)

    def _count(
        self,
        seen: Seen,
        groups: Mapping[str, Int[Tensor, " token"]],
        pairs: Mapping[str, tuple[list[Tensor], list[Tensor]]],
    ) -> None:
        """z and z' of each pair, a layer at a time."""
        for layer in self.layers:
            weights = output_weights(self.read.model, layer)
            stream = _tokens(seen.residual[layer], seen.real)
            for source, (old, new) in pairs.items():
                z, edited = _tokens(old[layer], seen.real), _tokens(new[layer], seen.real)
                self.draws[-1][source].add(layer, groups, z, edited, stream, weights, self.grams[layer])

    def table(self, split: str) -> Shifts:
        """What was summed up."""
        edit, places = self.read.run.edit, self.places
        means = {source: _means([one[source] for one in self.draws if source in one]) for source in SOURCES}
        pooled = {name: {source: _mean(one[name]) for source, one in means.items()} for name in means["local"]}
        random = {f"{name}/{source}": means[source][name] for source in SOURCES[2:] for name in MEANS}
        return Shifts(
            title=title_of(self.read.run),
            split=split,
            rows=len(self.read.encoded),
            dtype=str(self.read.model.dtype).removeprefix("torch."),
            normalised=any(hasattr(block, name) for block in blocks(self.read.model) for name in POST_NORMS),
            mask=edit.site("heads").mask.cpu().numpy(),
            group=edit.shape.group,
            tokens=self.counts["class"],
            position_bins=places.position_bins,
            position_tokens=self.counts["position"],
            answer_bins=places.answer_bins,
            answer_tokens=self.counts["answer"],
            kind_tokens=self.counts["kind"],
            plane_heads=self.planes.labels,
            plane_arrays=self.planes.arrays(),
            planes_by=PLANES_BY,
            draws=random if len(self.draws) > 1 else None,
            **pooled,
        )


class _Sums:
    """n, Σx and Σx² over the tokens of each group, per layer, in float64; numbers that are not finite do not count."""

    def __init__(self, groups: int, layers: int, *shape: int):
        self.n, self.total, self.squares = (torch.zeros(groups, layers, *shape, dtype=torch.float64) for _ in range(3))

    def add(self, layer: int, groups: Int[Tensor, " token"], values: Float[Tensor, " token *shape"]) -> None:
        """Add each token's numbers to its group; a token of group −1 belongs to none."""
        chosen = groups >= 0
        known = values[chosen].isfinite()
        clean = values[chosen].where(known, torch.zeros((), dtype=values.dtype))
        for sums, found in ((self.n, known.double()), (self.total, clean), (self.squares, clean.square())):
            sums[:, layer].index_add_(0, groups[chosen], found)

    def mean(self) -> Float[np.ndarray, "group layer *shape"]:
        return (self.total / self.n).numpy()  # 0/0 is NaN

    def sd(self) -> Float[np.ndarray, "group layer *shape"]:
        mean = self.total / self.n
        return (self.squares / self.n - mean.square()).clamp(min=0).sqrt().numpy()


class _Moves:
    """Sums for one pair of activations: per head, per layer, and per layer by place and kind."""

    def __init__(self, groups: Mapping[str, int], edit: JoLA):
        layers, heads = edit.shape.layers, edit.shape.heads
        self.heads = _Sums(groups["class"], layers, len(MEASURES), heads)
        self.layers = _Sums(groups["class"], layers, len(LAYER_MEASURES))
        self.whole = {name: _Sums(size, layers) for name, size in groups.items() if name != "class"}

    def add(
        self,
        layer: int,
        groups: Mapping[str, Int[Tensor, " token"]],
        z: Float[Tensor, "token head d_head"],
        edited: Float[Tensor, "token head d_head"],
        stream: Float[Tensor, "token d_model"],
        weights: Float[Tensor, "head d_head d_model"],
        gram: Float[Tensor, "head d_head d_head"],
    ) -> None:
        """Count in the tokens of a batch at one layer."""
        delta = edited - z
        # Products of one form: where z' = z they are equal to the last bit, and so the cosine is 1.
        size, moved, after, along = _dot(z, z), _dot(delta, delta), _dot(edited, edited), _dot(z, edited)
        written = _dot(torch.einsum("thd,hde->the", delta, gram.to(delta)), delta).clamp(min=0)  # ‖Δz W_O‖²
        width = _dot(stream, stream)  # [token]
        values = ((moved / size).sqrt(), along / (size * after).sqrt(), (written / width[:, None]).sqrt())
        self.heads.add(layer, groups["class"], torch.stack([*values, moved.sqrt(), size.sqrt()], 1))
        write = delta.flatten(1) @ weights.to(delta).flatten(0, 1)  # [token, d_model]
        length = _dot(write, write)
        both = torch.stack([(length / width).sqrt(), _dot(write, stream) / (length * width).sqrt()], 1)
        self.layers.add(layer, groups["class"], both)
        whole = (moved.sum(1) / size.sum(1)).sqrt()
        for name, sums in self.whole.items():
            sums.add(layer, groups[name], whole)

    def means(self) -> dict[str, np.ndarray]:
        """The fields of :class:`Shifts` that are made of these sums."""
        return {
            "mean": np.moveaxis(self.heads.mean(), 2, 0),
            "sd": np.moveaxis(self.heads.sd(), 2, 0),
            "layer_mean": np.moveaxis(self.layers.mean(), 2, 0),
            "layer_sd": np.moveaxis(self.layers.sd(), 2, 0),
            **{name: sums.mean() for name, sums in self.whole.items()},
        }


def _means(draws: Sequence[_Moves]) -> dict[str, np.ndarray]:
    """The fields of :class:`Shifts` for one source, [draw, …]."""
    found = [one.means() for one in draws]
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def _mean(draws: Float[np.ndarray, "draw ..."]) -> np.ndarray:
    """Over draws that have a value; NaN where none has."""
    known = np.isfinite(draws)
    sums = np.where(known, draws, 0).sum(0)
    return np.asarray(np.divide(sums, known.sum(0), out=np.full(sums.shape, np.nan), where=known.any(0)))


def _dot(x: Float[Tensor, "*token width"], y: Float[Tensor, "*token width"]) -> Float[Tensor, "*token"]:
    return (x * y).sum(-1).cpu().double()


def _tokens(values: Float[Tensor, "row pos *rest"], real: Bool[Tensor, "row pos"]) -> Float[Tensor, " token *rest"]:
    """The tokens of a batch below each other, row by row, in float32; padding is left out."""
    return values[real.to(values.device)].float()


def _gram(weights: Float[Tensor, "head d_head d_model"]) -> Float[Tensor, "head d_head d_head"]:
    return weights @ weights.transpose(1, 2)


# -- which token -------------------------------------------------------------------------------------------------------


class _Places:
    """The class, bins and kind of every token."""

    def __init__(self, read: Rows):
        self.tokenizer = read.model.tokenizer
        prompt = max(row.n_prompt for row in read.encoded)
        self.back = max(prompt - 1, 0).bit_length()  # bins before the answer; the first token is in none
        self.ahead = max(max(row.n_answer for row in read.encoded) - 1, 0).bit_length() + 1
        longest = max(len(row.ids) for row in read.encoded)
        self.position_bins = tuple(_bin_name(i) for i in range((longest - 1).bit_length() + 1))
        before = [_bin_name(i, "−") for i in range(self.back, 0, -1)]
        self.answer_bins = (*before, *(_bin_name(i, "+") for i in range(self.ahead)))

    def of(self, seen: Seen) -> dict[str, Int[Tensor, " token"]]:
        """Groups of the tokens of a batch, row by row; −1 is none."""
        real, prompt, first = (mask.cpu() for mask in (seen.real, seen.prompt, seen.first))
        place = real.cumsum(1) - 1
        from_answer = place - (prompt & real).sum(1, keepdim=True)
        bins = torch.where(from_answer < 0, self.back - _bin(-from_answer), self.back + _bin(from_answer))
        classes = torch.where(prompt, CLASSES.index("prompt"), CLASSES.index("answer"))
        found = {
            "class": torch.where(first, CLASSES.index("first"), classes),
            "position": _bin(place),
            "answer": torch.where(first, -1, bins),
        }
        kinds = [
            KINDS.index(kind)
            for ids, mask in zip(seen.ids.cpu(), real, strict=True)
            for kind in token_kinds(ids[mask].tolist(), self.tokenizer)
        ]
        return {name: group[real] for name, group in found.items()} | {"kind": torch.tensor(kinds)}


def _bin(place: Int[Tensor, "row pos"]) -> Int[Tensor, "row pos"]:
    """0, 1, 2–3, 4–7, …: how many binary digits a place has; 0 for what is below 0."""
    return torch.bucketize(place, 2 ** torch.arange(40), right=True)


def _bin_name(index: int, sign: str = "") -> str:
    """Such as "2–3", or "−3…−2" and "+2…+3" with a sign."""
    if index == 0:
        return "0"
    low, high = 2 ** (index - 1), 2**index - 1
    if low == high:
        return f"{sign}{low}"
    ends = (high, low) if sign == "−" else (low, high)
    return f"{sign}{ends[0]}…{sign}{ends[1]}" if sign else f"{low}–{high}"


def token_kinds(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """What each token of a row is, by its text: one of :data:`KINDS`.

    A token with letters starts a word if a space stands before it, in it or as its neighbour, or if what precedes it is
    neither letters nor digits; else it continues one. Bytes that are no character of their own count as letters.
    """
    assert tokenizer is not None
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    found: list[str] = []
    previous = "first"
    for place, token in enumerate(ids):
        kind, spaced = ("special", False) if token in special else _text_kind(token, tokenizer)
        if kind == "word":
            inside = previous in ("word start", "word continuation", "digit") and not spaced
            kind = "word continuation" if inside else "word start"
        previous = kind
        found.append(kind if place else "first")
    return found


def _text_kind(token: int, tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """Its kind ("word" for letters), and whether it begins with a space."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    piece = str(tokenizer.convert_ids_to_tokens(token))
    spaced = text[:1].isspace() or piece[:1] in ("Ġ", "▁")  # decoding alone drops the space of sentencepiece's ▁
    bare = text.strip()
    if not bare:
        return "space or newline", spaced
    if bare.isdigit():
        return "digit", spaced
    if not any(character.isalnum() or character == "\ufffd" for character in bare):
        return "punctuation", spaced
    return "word", spaced


# -- planes ------------------------------------------------------------------------------------------------------------


class _Planes:
    """Covariance of a few heads' base activations, and their z and z' at a few tokens."""

    def __init__(self, read: Rows, heads: int, tokens: int):
        edit = read.run.edit
        self.offsets = _gated(edit, "additive")
        self.heads = _largest(read, self.offsets, heads) if heads else []
        width = edit.shape.d_head
        self.labels = tuple(unit_label("heads", layer, head) for layer, head in self.heads)
        self.slots, count = _drawn([len(row.ids) for row in read.encoded], tokens)
        self.kept = torch.zeros(2, len(self.heads), count, width, dtype=torch.float64)  # base, edited
        self.answer = torch.zeros(count, dtype=torch.bool)
        self.n = 0
        self.total = torch.zeros(len(self.heads), width, dtype=torch.float64)
        self.products = torch.zeros(len(self.heads), width, width, dtype=torch.float64)

    def add(self, seen: Seen, classes: Int[Tensor, " token"]) -> None:
        """Count a batch in."""
        inner = classes != CLASSES.index("first")
        self.n += int(inner.sum())
        chosen, slots = self._chosen(seen)
        self.answer[slots] = classes[chosen] == CLASSES.index("answer")
        for i, (layer, head) in enumerate(self.heads):
            base, edited = (
                _tokens(values[layer][:, :, head], seen.real).cpu().double() for values in (seen.base, seen.after)
            )
            self.total[i] += base[inner].sum(0)
            self.products[i] += base[inner].T @ base[inner]
            self.kept[0, i, slots], self.kept[1, i, slots] = base[chosen], edited[chosen]

    def _chosen(self, seen: Seen) -> tuple[Int[Tensor, " drawn"], Int[Tensor, " drawn"]]:
        """Which of the batch's tokens are kept, counted row by row, and where."""
        begins = torch.cat([torch.zeros(1, dtype=torch.long), seen.real.sum(1).cpu().cumsum(0)[:-1]])
        found = [
            (int(begin) + place, slot)
            for begin, row in zip(begins, seen.places, strict=True)
            for place, slot in self.slots.get(row, ())
        ]
        both = torch.tensor(found, dtype=torch.long).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def arrays(self) -> dict[str, np.ndarray]:
        """Fields of :class:`Plane`, stacked over heads."""
        found = [self._plane(i) for i in range(len(self.heads))]
        shapes = {"components": (2, self.total.shape[1]), "explained": (2,), "offset": (2,), "offset_share": ()}
        shapes |= {"base": (self.kept.shape[2], 2), "edited": (self.kept.shape[2], 2), "moved_share": ()}
        stacked = {
            name: np.array([one[name] for one in found], dtype=np.float64).reshape(len(found), *shape)
            for name, shape in shapes.items()
        }
        return stacked | {"answer": self.answer.numpy()}

    def _plane(self, i: int) -> dict[str, Any]:
        mean = self.total[i] / max(self.n, 1)
        components, explained = _principal(self.products[i] / max(self.n, 1) - torch.outer(mean, mean))
        base, edited = (self.kept[j, i] for j in (0, 1))
        offset = self.offsets[self.heads[i]].double()
        moved = edited - base
        return {
            "components": components.numpy(),
            "explained": explained.numpy(),
            "base": ((base - mean) @ components.T).numpy(),
            "edited": ((edited - mean) @ components.T).numpy(),
            "offset": (components @ offset).numpy(),
            "offset_share": _share(offset[None], components),
            "moved_share": _share(moved, components),
        }


def _principal(covariance: Float[Tensor, "d_head d_head"]) -> tuple[Float[Tensor, "2 d_head"], Float[Tensor, " 2"]]:
    """The first two components, the largest entry of each positive, and their shares of the variance.

    With d_head = 1 the second is 0; without any variance the shares are NaN.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1).T[:2]  # largest first, a row each
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    components, explained = torch.zeros(2, len(covariance)).double(), torch.zeros(2).double()
    components[: len(vectors)] = vectors * largest.sign()
    explained[: len(vectors)] = (values / values.sum())[:2]
    return components, explained


def _share(vectors: Float[Tensor, "n d_head"], components: Float[Tensor, "2 d_head"]) -> float:
    """Σ‖v in the plane‖²/Σ‖v‖²; NaN if all are 0."""
    return float((vectors @ components.T).square().sum() / vectors.square().sum())


def _drawn(lengths: Sequence[int], most: int) -> tuple[dict[int, list[tuple[int, int]]], int]:
    """At most so many tokens, evenly spaced over all but the first of each row: row to (place in it, slot); and how
    many they are."""
    ends = np.cumsum([max(length - 1, 0) for length in lengths])
    total = int(ends[-1])
    picks = (
        np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64)) if total else np.empty(0, int)
    )
    owners = np.searchsorted(ends, picks, side="right")
    slots: dict[int, list[tuple[int, int]]] = {}
    for slot, (pick, row) in enumerate(zip(picks.tolist(), owners.tolist(), strict=True)):
        begin = int(ends[row - 1]) if row else 0
        slots.setdefault(row, []).append((pick - begin + 1, slot))
    return slots, len(picks)


def _largest(read: Rows, offsets: Float[Tensor, "layer head d_head"], most: int) -> list[tuple[int, int]]:
    """The heads with the largest (‖g_a·a‖²/rms(z)² + ‖g_m·m‖²)^½, the largest first; none of 0.

    Over √d_head that is the root of E‖Δz‖²/E‖z‖² if the components of z are of one size and 0 in the mean. What a head
    writes is another order: W_O may make much of a head that hardly moves.
    """
    scales = _gated(read.run.edit, "multiplicative")
    rms = unit_rms(read.model, read.encoded[:RMS_ROWS], ("heads",), read.backend)["heads"].nan_to_num(1.0).cpu()
    squares = offsets.square().sum(-1) / rms.square().clamp(min=torch.finfo(torch.float32).tiny)
    sizes = (squares + scales.square().sum(-1)).where(rms > 0, torch.zeros(())).numpy()
    order = np.argsort(-sizes, axis=None, kind="stable")[:most]
    return [divmod(int(i), sizes.shape[1]) for i in order if sizes.flat[i] > 0]


def _gated(edit: JoLA, operation: Literal["additive", "multiplicative"]) -> Float[Tensor, "layer head d_head"]:
    """g·v of every head at inference, 0 where there is none."""
    return edit.at_inference("heads").get(operation, torch.zeros(edit.shape.units("heads"))).cpu().float()
