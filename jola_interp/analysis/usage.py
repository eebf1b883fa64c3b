"""How each head is used, and how large what it does is: an open gate may stand before a vector that is nearly 0.

    at the head     ‖g_a a‖ / rms‖z‖              E‖g_m m ⊙ z‖ / rms‖z‖
    to the stream   ‖g_a a W_O‖ / E‖stream‖       E‖(g_m m ⊙ z) W_O‖ / E‖stream‖

z is a head's output in the edited pass as it reaches the edit, rms‖z‖ = (E‖z‖²)^½, the stream is what enters the block
in the base model, E is the mean over tokens. First tokens are told apart: on many models their norms are a hundred
times those of all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jola_interp import gates, selection
from jola_interp.analysis.rows import Seen, Split, output_weights, prepared, watched
from jola_interp.analysis.summary import percent, title_of
from jola_interp.backends.restart import blocks
from jola_interp.convergence import UNDECIDED
from jola_interp.edits.base import unit_label
from jola_interp.edits.jola import JoLA, Operation
from jola_interp.evaluation.metrics import middle, resampled_sums
from jola_interp.models import Model
from jola_interp.objective import Objective
from jola_interp.runs import Run, edit_digest
from jola_interp.schedules import PenaltySchedule
from jola_interp.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

Place = Literal["head", "stream"]
GateName = Literal["inference", "expected"]
By = Literal["additive", "multiplicative", "both"]
Measure = Literal["absolute", "squared"]
"""Of sizes; a share of gates is by ``count``."""
KINDS: tuple[Operation, ...] = ("additive", "multiplicative")
OTHERS, FIRST = 0, 1
"""Places of all other and of first tokens in arrays."""
WHOLE = "whole"
"""Beside the kinds: both together."""
PERMUTATIONS = 1000
POST_NORMS = ("post_feedforward_layernorm", "post_self_attn_layernorm")
"""Parts of blocks that normalise what attention writes before it joins the stream (Gemma 2 and 3, OLMo 2, GLM-4)."""
NOT_IDENTIFIED = "An offset's head is not identified where other heads of the layer could host it"
Sizes = Float[np.ndarray, "layer head"]


@dataclass(frozen=True)
class Training:
    """What of the training bears on additive against multiplicative.

    Attributes:
        form: of the penalty.
        penalties: kind of gate to its λ at the last step.
        lr_ratio: learning rate of a over that of m.
        units: in which a was trained: ``raw``, or ``rms`` of z.
        scope: the tokens that are edited.
        inference: the gate at inference.
        units_test: what the evidence card knows: "not run", or whether the sign of open additive − open multiplicative
            "changes" or "holds" at other ratios and in other units.
        offset_tag: the audit's tag of ‖g_a a W_O‖ in the evidence card; "" without one.
    """

    form: str
    penalties: Mapping[str, float]
    lr_ratio: float
    units: str
    scope: str
    inference: str
    units_test: str = "not run"
    offset_tag: str = ""

    @property
    def one_penalty(self) -> bool:
        """Whether gates of both kinds paid the same λ."""
        return len(set(self.penalties.values())) == 1

    def penalty_words(self) -> str:
        """Which λ gates of each kind paid."""
        if not any(self.penalties.values()):
            return "without a penalty (λ = 0)"
        if self.one_penalty:
            both = "λ" if self.penalties.keys() & set(KINDS) and len(self.penalties) == 1 else "one λ for both kinds"
            return f"under {both} ({next(iter(self.penalties.values())):.3g} at the last step)"
        told = ", ".join(f"{kind} {value:.3g}" for kind, value in self.penalties.items())
        why = ", λ and 1 − λ as in the released code" if self.form == "reference" else ""
        return f"under UNEQUAL λ ({told}{why}), so that the count is confounded"


@dataclass(frozen=True)
class Share:
    """The additive share of what the edit writes: Σ s_a / (Σ s_a + Σ s_m) over gates that act, s a size or its square.

    Or of the gates that a rule counts as open: s is 1 where it is. Heads are the units either way, and intervals are of
    this Run, not over seeds.

    Attributes:
        measure: ``absolute`` (s is the size), ``squared``, or ``count``.
        value, low, high: the share, and its 95 % interval: of sizes a bootstrap over heads, of the count the exact
            binomial one (Clopper and Pearson) of the heads with one kind alone, given those with both.
        null: its mean where kinds are exchanged at random: of sizes among the gates that act, which is their additive
            share by number; of the count 1/2.
        p: of a share as far from ``null``: of sizes by permutation, 1 where gates of one kind alone act; of the count
            by the binomial of the heads with one kind alone (McNemar's test, exact).
        heads, gates: how many act, or are open. All shares are NaN where none does, or nothing is written.
    """

    measure: Measure | Literal["count"]
    value: float
    low: float
    high: float
    null: float
    p: float
    heads: int
    gates: int

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "nothing"
        return f"{percent(self.value)} [{percent(self.low)}, {percent(self.high)}]"


@dataclass(frozen=True)
class HeadUse:
    """A head: its status, and the sizes of what it adds and of what it multiplies, over the stream's norm."""

    label: str
    layer: int
    head: int
    status: str
    additive: float
    multiplicative: float


@dataclass(frozen=True, eq=False)
class Usage:
    """How every head is used; made by :func:`usage`.

    Attributes:
        title: model and task.
        task, split, rows: what was read.
        tokens: how many other and how many first tokens that were.
        rule: when a gate counts as open.
        gates: ``separate``, or ``shared`` where one gate opens both kinds.
        operations: the kinds that the edit has.
        training: what bears on the answer.
        status: codes into ``selection.STATUSES``; 0 where not editable.
        editable: which heads are.
        p_open, expected, gate: kind to P(open), E[g] and the gate at inference; NaN where not editable.
        per_gate: kind to the sizes that a gate of 1 would give: [place (head, stream), tokens (others, first)].
        layer_sums: kind, or "whole" for both, to E‖Σ_h …‖ / E‖stream‖ at the inference gates: what a layer's heads
            write together. Unlike the offsets of single heads, that of the layer is identified.
        z_norm: rms‖z‖.
        stream: E‖stream‖.
        d_head: width of a head.
        group: query heads that share a key-value head; 0 where they do not.
        normalised: whether the block normalises what attention writes before it joins the stream; sizes are before.
    """

    title: str
    task: str
    split: str
    rows: int
    tokens: tuple[int, int]
    rule: str
    gates: str
    operations: tuple[str, ...]
    training: Training
    status: Int[np.ndarray, "layer head"] = field(repr=False)
    editable: Bool[np.ndarray, "layer head"] = field(repr=False)
    p_open: Mapping[str, Sizes] = field(repr=False)
    expected: Mapping[str, Sizes] = field(repr=False)
    gate: Mapping[str, Sizes] = field(repr=False)
    per_gate: Mapping[str, Float[np.ndarray, "place tokens layer head"]] = field(repr=False)
    layer_sums: Mapping[str, Float[np.ndarray, "tokens layer"]] = field(repr=False)
    z_norm: Float[np.ndarray, "tokens layer head"] = field(repr=False)
    stream: Float[np.ndarray, "tokens layer"] = field(repr=False)
    d_head: int = 1
    group: int = 0
    normalised: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads a layer)."""
        return self.editable.shape[0], self.editable.shape[1]

    @property
    def labels(self) -> np.ndarray:
        """[layer, head] "L3H7"."""
        layers, heads = self.shape
        return np.array([[unit_label("heads", i, j) for j in range(heads)] for i in range(layers)], dtype=object)

    @property
    def undecided(self) -> dict[str, Bool[np.ndarray, "layer head"]]:
        """Kind to whether .05 ≤ P(open) ≤ .95."""
        low, high = UNDECIDED
        return {kind: (value >= low) & (value <= high) for kind, value in self.p_open.items()}

    def counts(self) -> dict[str, int]:
        """Status to number of heads, "none" included."""
        return {
            name: int((self.editable & (self.status == code)).sum()) for code, name in enumerate(selection.STATUSES)
        }

    def open(self, kind: Operation) -> int:
        """How many gates of a kind the rule counts as open."""
        return int(self._opened(kind).sum())

    def _opened(self, kind: Operation) -> Bool[np.ndarray, "layer head"]:
        return np.asarray(self.editable & (self.status & (1 + KINDS.index(kind)) > 0))

    def count_share(self) -> Share:
        """The additive share of the gates that the rule counts as open, with its interval. See :class:`Share`."""
        opened = np.stack([self._opened(kind) for kind in KINDS], -1)
        return _count_share(opened[opened.any(-1)])

    def size(
        self, kind: Operation, place: Place = "stream", *, gate: GateName = "inference", first: bool = False
    ) -> Sizes:
        """Size of what each head adds, or multiplies, relative to what is there; NaN where not editable.

        Exactly 0 where the gate is 0, and everywhere if the edit has no such operation.

        Args:
            kind: ``additive`` or ``multiplicative``.
            place: ``stream``: ‖… W_O‖ / E‖stream‖ · ``head``: ‖…‖ / rms‖z‖.
            gate: the one at ``inference``, or ``expected``, E[g].
            first: at first tokens, rather than all others.

        Raises:
            ValueError: an unknown word.
        """
        _one_of("kind", kind, KINDS)
        _one_of("place", place, get_args(Place))
        _one_of("gate", gate, get_args(GateName))
        if kind not in self.per_gate:
            return np.where(self.editable, 0.0, np.nan)
        value = (self.gate if gate == "inference" else self.expected)[kind]
        whole = self.per_gate[kind][get_args(Place).index(place), FIRST if first else OTHERS]
        return np.where(value == 0, 0.0, value * whole)

    def share(
        self, measure: Measure = "absolute", *, gate: GateName = "inference", first: bool = False, seed: int = 0
    ) -> Share:
        """The additive share of what is written to the stream, beside its null. See :class:`Share`.

        Sizes are over the stream's norm at their own layer, so that layers count alike.

        Raises:
            ValueError: an unknown word.
        """
        _one_of("measure", measure, get_args(Measure))
        power = 1 + get_args(Measure).index(measure)
        written = np.stack([self.size(kind, gate=gate, first=first) for kind in KINDS], -1) ** power
        acting = np.stack([self._acting(kind, gate) for kind in KINDS], -1) & np.isfinite(written)
        heads = acting.any(-1)
        return _share(measure, np.where(acting, written, 0.0)[heads], acting[heads], seed)

    def top(self, k: int, by: By = "both") -> tuple[HeadUse, ...]:
        """The ``k`` heads that write most to the stream at inference; what writes nothing is never among them.

        Args:
            k: how many at most.
            by: ``additive``, ``multiplicative``, or ``both``, the sum of their sizes.

        Raises:
            ValueError: ``k`` below 0, or an unknown word.
        """
        _one_of("by", by, get_args(By))
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise ValueError(f"k must be an integer ≥ 0; got {k!r}")
        sizes = {kind: self.size(kind) for kind in KINDS}
        ranked = np.nan_to_num(sum(sizes.values()) if by == "both" else sizes[by]).reshape(-1)
        order = [int(place) for place in np.argsort(-ranked, kind="stable")[:k] if ranked[place] > 0]
        return tuple(self._head_use(*divmod(place, self.shape[1]), sizes) for place in order)

    def to_frame(self) -> pd.DataFrame:
        """One row per editable head: label, layer, head, status; per kind p_open, expected, gate and the sizes.

        ``head_*`` are at the head, ``stream_*`` to the stream, both at the inference gate; ``expected_*`` to the stream
        at E[g]; ``first_*`` to the stream at first tokens.
        """
        import pandas as pd

        at = np.nonzero(self.editable)
        words = np.array(selection.STATUSES, dtype=object)[self.status[at]]
        columns: dict[str, Any] = {"label": self.labels[at], "layer": at[0], "head": at[1], "status": words}
        for kind in self.operations:
            known = {"p_open": self.p_open, "expected": self.expected, "gate": self.gate}
            columns |= {f"{name}_{kind}": values[kind][at] for name, values in known.items()}
        for kind in KINDS:
            columns[f"head_{kind}"] = self.size(kind, "head")[at]
            columns[f"stream_{kind}"] = self.size(kind)[at]
            columns[f"expected_stream_{kind}"] = self.size(kind, gate="expected")[at]
            columns[f"first_stream_{kind}"] = self.size(kind, first=True)[at]
        return pd.DataFrame(columns)

    # -- in words ------------------------------------------------------------------------------------------------------

    def answer(self) -> str:
        """Additive or multiplicative? The word, where count and size agree on it; else "undecided", or "nothing".

        A kind is ahead, by count or by size, where the interval of its share leaves out 1/2. An answer that another
        learning-rate ratio or unit would turn round is "an artefact of units".
        """
        size = self.share()
        if math.isnan(size.value):
            return "nothing"
        if len(self.operations) == 1:
            return self.operations[0]
        if self.training.units_test == "changes":
            return "an artefact of units"
        words = {self._ahead(size)} if self.gates == "shared" else {self._ahead(size), self._by_count()}
        return words.pop() if len(words) == 1 else "undecided"

    def sentences(self) -> tuple[str, ...]:
        """The answer: by count, by size, what its λ was, and what makes it an artefact."""
        return (self._count_words(), self._size_words(), *self.caveats())

    def sentence(self) -> str:
        """:meth:`sentences` as one text."""
        return " ".join(self.sentences())

    def caveats(self) -> tuple[str, ...]:
        """What a reader of any of the numbers must know."""
        found = [self._units_words()] if len(self.operations) == 2 else []
        if "additive" in self.operations:
            tagged = f" (the audit of this Run: {self.training.offset_tag})" if self.training.offset_tag else ""
            found.append(f"{NOT_IDENTIFIED}{tagged}.")
        if self.normalised:
            found.append(
                "Here the block normalises what attention writes before it joins the stream: sizes are before."
            )
        if self.training.scope != "all":
            found.append(f"The edit acts on some tokens only ({self.training.scope}); at the others it writes 0.")
        return tuple(found)

    def tokens_words(self) -> str:
        """Which tokens the sizes are over, and how the first differ."""
        others, first = self.tokens
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.median(self.stream[FIRST] / self.stream[OTHERS])
        told = f", where the stream's norm is {ratio:.3g} times as large (median of layers)" if ratio == ratio else ""
        return f"Means over {others:,} tokens of {self.rows} {self.split} rows; the {first:,} first tokens apart{told}."

    def _head_use(self, layer: int, head: int, sizes: Mapping[Operation, Sizes]) -> HeadUse:
        written = (float(sizes[kind][layer, head]) for kind in KINDS)
        status = selection.STATUSES[self.status[layer, head]]
        return HeadUse(unit_label("heads", layer, head), layer, head, status, *written)

    def _acting(self, kind: Operation, gate: GateName = "inference") -> Bool[np.ndarray, "layer head"]:
        """Gates that are not 0."""
        values = (self.gate if gate == "inference" else self.expected).get(kind)
        return np.zeros(self.shape, dtype=bool) if values is None else np.nan_to_num(values) > 0

    def _by_count(self) -> str:
        return self._ahead(self.count_share())

    def _ahead(self, share: Share) -> str:
        return "additive" if share.low > 0.5 else "multiplicative" if share.high < 0.5 else "undecided"

    def _count_words(self) -> str:
        counts = ", ".join(f"{count} are {name}" for name, count in self.counts().items() if name != "none")
        opened = ", ".join(f"{self.open(kind)} {kind}" for kind in KINDS if kind in self.operations)
        penalty = self.training.penalty_words()
        one = "; one gate opens both kinds, so that counts cannot tell" if self.gates == "shared" else ""
        told = f"of {self.editable.sum()} heads {counts}; open gates: {opened}{self._count_interval()}"
        return f"By count ({self.rule}): {told}, {penalty}{one}."

    def _count_interval(self) -> str:
        share = self.count_share()
        if self.gates == "shared" or len(self.operations) == 1 or math.isnan(share.value):
            return ""
        alone = sum(self.counts()[kind] for kind in KINDS)
        return (
            f" ({share} of them additive: 95 %, exact binomial over the {alone} heads with one kind alone, "
            f"p = {share.p:.3f} against as many of either)"
        )

    def _size_words(self) -> str:
        if len(self.operations) == 1:
            return f"The edit has {self.operations[0]} gates alone."
        plain, squared = self.share(), self.share("squared")
        if math.isnan(plain.value):
            return "No gate acts at inference: the edit writes nothing."
        said = "agree" if self.gates != "shared" and self._ahead(plain) == self._by_count() else "differ"
        told = "" if self.gates == "shared" else f" Count ({self._by_count()}) and size ({self._ahead(plain)}) {said}."
        return (
            f"By size, {plain} of what the {plain.gates} gates that act write to the stream is additive, of its "
            f"squares {squared} (95 % over {plain.heads} heads of this Run, not over seeds; with kinds exchanged at "
            f"random among these gates {percent(plain.null)}, p = {plain.p:.3f} and {squared.p:.3f}).{told}"
        )

    def _units_words(self) -> str:
        training = self.training
        if training.units_test == "holds":
            return (
                "Trained at other ratios of learning rates and in units of rms(z), the kind with more open gates stays "
                "the same; of sizes this says nothing."
            )
        if training.units_test == "changes":
            return (
                "Trained at other ratios of learning rates or in units of rms(z), the other kind has more open gates: "
                "additive against multiplicative is an artefact of units here."
            )
        known = self.z_norm[OTHERS][self.editable] / math.sqrt(self.d_head)
        if not (np.isfinite(known) & (known > 0)).any():
            return "Units decide (the evidence card's part 'units' was not run)."
        usual = float(np.nanmedian(known))
        farther = training.lr_ratio / (usual if training.units == "raw" else 1.0)
        return (
            f"Units decide: with rms(z) about {usual:.2g} a component and lr_ratio {training.lr_ratio:g} in "
            f"{training.units} units, a step of a moves z about {farther:.2g} times as far as one of m (the evidence "
            "card's part 'units' was not run)."
        )


def usage(
    run: Run,
    task: str | Task,
    model: str | Model | None = None,
    *,
    split: Split = "test",
    rows: int = 32,
    rule: str = selection.DEFAULT_RULE,
    batch_size: int = 4,
) -> Usage:
    """Status of every head of the kept edit, and the size of what it adds and multiplies (see the module's formulas).

    Two passes over the rows, of the base and of the edited model. A norm behind W_O is taken by the triangular factor
    of W_O's QR decomposition, ‖x W_O‖ = ‖x Rᵀ‖, in float32.

    Args:
        run: with gates at heads.
        task: whose rows to read, encoded as in training; a name or a Task.
        model: None is the Run's own.
        split: ``test`` or ``validation``.
        rows: the first so many rows of it.
        rule: when a gate counts as open (:mod:`jola_interp.selection`).
        batch_size: rows in one pass; z of one batch is kept three times, at all layers.

    Raises:
        ValueError: a field outside its range, an empty split, an edit without gates at heads, or one that is attached
            to the model already.
    """
    selection.parse_rule(rule)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer ≥ 1; got {batch_size!r}")
    log_alphas = run.log_alphas("heads")
    read = prepared(run, task, model, split=split, rows=rows, what="usage")
    gauge = _Gauge(run.edit, read.model)
    for seen in watched(read, batch_size):
        gauge.add(seen)
    shape = run.edit.shape
    return Usage(
        title=title_of(run),
        task=read.task.name,
        split=split,
        rows=len(read.examples),
        rule=rule,
        gates="shared" if "shared" in run.edit.site("heads").kinds else "separate",
        operations=tuple(run.edit.site("heads").operations),
        training=_training(run),
        status=selection.status(log_alphas, rule).astype(np.int64),
        editable=run.edit.masks()["heads"].cpu().numpy(),
        d_head=shape.d_head,
        group=shape.group,
        normalised=any(hasattr(block, name) for block in blocks(read.model) for name in POST_NORMS),
        **_gate_values(run.edit, log_alphas),
        **gauge.found(),
    )


def with_evidence(table: Usage, run: Run) -> Usage:
    """The table with what the Run's evidence card knows by now: cards may be newer than tables."""
    units_test, offset_tag = _evidence(run)
    return replace(table, training=replace(table.training, units_test=units_test, offset_tag=offset_tag))


# -- measuring ---------------------------------------------------------------------------------------------------------


class _Gauge:
    """Adds up norms over the tokens of batches; [tokens, …] holds all other tokens, then the first."""

    def __init__(self, edit: JoLA, model: Model):
        part = edit.site("heads")
        self.edit, self.model = edit, model
        self.vectors: dict[str, Tensor] = {
            kind: _plain(part.vector(kind) * part.mask[..., None]) for kind in part.operations
        }
        self.acting: dict[str, Tensor] = {kind: _plain(x) for kind, x in edit.at_inference("heads").items()}
        self.factors = [_factor(output_weights(model, layer)) for layer in range(edit.shape.layers)]
        layers, heads = edit.shape.layers, edit.shape.heads
        self.count, self.edited = np.zeros(2), np.zeros(2)
        self.squares = np.zeros((2, layers, heads))
        self.scaled = np.zeros((2, 2, layers, heads))  # [place, tokens, layer, head]
        self.stream = np.zeros((2, layers))
        self.together = {kind: np.zeros((2, layers)) for kind in (*part.operations, WHOLE)}

    def add(self, seen: Seen) -> None:
        """Count a batch in."""
        scope = _scope(self.edit, seen)
        for tokens, where in enumerate((seen.real & ~seen.first, seen.first)):
            self.count[tokens] += int(where.sum())
            self.edited[tokens] += int(scope[where].sum())
            for layer, (z, stream) in enumerate(zip(seen.before, seen.residual, strict=True)):
                chosen = z[where.to(z.device)].float()  # [token, head, d_head]
                self._add_heads(tokens, layer, chosen, scope[where].to(z.device))
                self.stream[tokens, layer] += _total(stream[where.to(stream.device)].float().norm(dim=-1))

    def _add_heads(
        self, tokens: int, layer: int, z: Float[Tensor, "token head d_head"], scope: Bool[Tensor, " token"]
    ) -> None:
        self.squares[tokens, layer] += _total(z.square().sum(-1))
        inside = z[scope]
        if "multiplicative" in self.vectors:
            moved = inside * self.vectors["multiplicative"][layer].to(z)
            behind = torch.einsum("thd,hde->the", moved, self.factors[layer].to(z))
            for place, norms in enumerate((moved.norm(dim=-1), behind.norm(dim=-1))):
                self.scaled[place, tokens, layer] += _total(norms)
        parts = {kind: vector[layer].to(z)[None] for kind, vector in self.acting.items()}
        if "multiplicative" in parts:
            parts["multiplicative"] = parts["multiplicative"] * inside
        written = {kind: _written(self.model, layer, x).expand(len(inside), -1) for kind, x in parts.items()}
        written[WHOLE] = torch.stack(list(written.values())).sum(0)
        for kind, vectors in written.items():
            self.together[kind][tokens, layer] += _total(vectors.norm(dim=-1))

    def found(self) -> dict[str, Any]:
        """The fields of :class:`Usage` that were measured; NaN over tokens that there are none of."""
        with np.errstate(invalid="ignore", divide="ignore"):
            z_norm = np.sqrt(self.squares / self.count[:, None, None])
            stream = self.stream / self.count[:, None]
            sizes = {kind: self._means(kind) for kind in self.vectors}
            sums = {kind: total / self.count[:, None] / stream for kind, total in self.together.items()}
            below = np.stack([z_norm, np.broadcast_to(stream[..., None], z_norm.shape)])  # [place, tokens, layer, head]
            editable = self.edit.masks()["heads"].cpu().numpy()
            known = editable & (below > 0)  # a head that is 0 throughout has no size to compare with
            per_gate = {kind: np.where(known, mean / below, np.nan) for kind, mean in sizes.items()}
        tokens = (int(self.count[OTHERS]), int(self.count[FIRST]))
        return {"per_gate": per_gate, "layer_sums": sums, "z_norm": z_norm, "stream": stream, "tokens": tokens}

    def _means(self, kind: str) -> Float[np.ndarray, "place tokens layer head"]:
        """Mean norm over tokens of what a gate of 1 would give."""
        if kind == "multiplicative":
            return self.scaled / self.count[:, None, None]
        vector = self.vectors[kind]
        behind = torch.stack(
            [torch.einsum("hd,hde->he", a, r.to(a)) for a, r in zip(vector, self.factors, strict=True)]
        )
        norms = np.stack([part.norm(dim=-1).double().numpy() for part in (vector, behind)])  # [place, layer, head]
        return np.asarray(norms[:, None] * (self.edited / self.count)[:, None, None])


def _factor(weight: Float[Tensor, "head d_head d_model"]) -> Float[Tensor, "head d_head rank"]:
    """Rᵀ of the QR decomposition of W_Oᵀ: ‖x Rᵀ‖ = ‖x W_O‖, with d_head numbers in place of d_model."""
    return _plain(torch.linalg.qr(weight.cpu().mT, mode="r").R.mT)


def _written(model: Model, layer: int, heads: Float[Tensor, "token head d_head"]) -> Float[Tensor, "token d_model"]:
    """Σ_h x_h W_O[h], by the model's own module, without its bias."""
    module = model.o_proj(layer)
    bias = getattr(module, "bias", None)
    flat = heads.flatten(1).to(model.dtype)
    out: Tensor = module(flat).float()
    return out if bias is None else out - bias.float()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().float()


def _total(norms: Float[Tensor, "token ..."]) -> np.ndarray:
    """Σ over tokens, in float64."""
    return norms.cpu().double().sum(0).numpy()


def _scope(edit: JoLA, seen: Seen) -> Bool[Tensor, "row pos"]:
    """The tokens at which the edit acts."""
    inside = {
        "all": seen.real,
        "not_first": seen.real & ~seen.first,
        "prompt": seen.real & seen.prompt,
        "answer": seen.real & ~seen.prompt,
    }
    return inside[edit.scope]


def _gate_values(edit: JoLA, log_alphas: selection.LogAlphas) -> dict[str, Any]:
    """P(open), E[g] and the inference gate of each kind of operation."""
    part = edit.site("heads")
    found: dict[str, dict[str, Sizes]] = {}
    at_inference = gates.INFERENCE[edit.inference]
    for name in ("p_open", "expected", "gate"):
        found[name] = {}
        for kind in part.operations:
            known = log_alphas[part.gate_of(kind)]
            if name == "gate":
                value = at_inference(torch.from_numpy(np.nan_to_num(known))).numpy()
                found[name][kind] = np.where(np.isnan(known), np.nan, value).astype(np.float32)
            else:
                found[name][kind] = selection.measure(name, known)
    return found


def _training(run: Run) -> Training:
    train = run.config["train"]
    units_test, offset_tag = _evidence(run)
    return Training(
        form=train["penalty_form"],
        penalties=_penalties(run),
        lr_ratio=float(train["lr_ratio"]),
        units=run.edit.units,
        scope=run.edit.scope,
        inference=run.edit.inference,
        units_test=units_test,
        offset_tag=offset_tag,
    )


def _penalties(run: Run) -> dict[str, float]:
    """Kind of gate to its λ at the last step that was logged; where none was, as the configuration begins."""
    train, frame = run.config["train"], run.metrics
    schedule = PenaltySchedule("constant", train["penalty"], 1)
    weights = (train["additive_weight"], train["multiplicative_weight"])
    planned = Objective(train["penalty_form"], schedule, weights).weights()
    found = {}
    for kind in run.edit.site("heads").kinds:
        logged = list(frame[f"lambda_{kind}"].dropna()) if f"lambda_{kind}" in frame else []
        found[str(kind)] = float([planned[kind], *logged][-1])
    return found


def _evidence(run: Run) -> tuple[str, str]:
    """What the evidence card of this edit knows of units, and the tag that its audit gives single heads' offsets."""
    from jola_interp.evidence.audit import ADDED
    from jola_interp.evidence.card import Card

    card = Card.load(run)
    if card is None or card.settings.get("edit") != edit_digest(run.edit):
        return "not run", ""
    known = card.had.get("units")
    units_test = "not run" if known is None else "changes" if known["changes_sign"] else "holds"
    tags = {number["name"]: number["tag"] for number in card.had.get("audit", {}).get("numbers", ())}
    return units_test, tags.get(ADDED, "")


# -- shares ------------------------------------------------------------------------------------------------------------


def _share(
    measure: Measure, written: Float[np.ndarray, "head 2"], acting: Bool[np.ndarray, "head 2"], seed: int
) -> Share:
    """The additive share of ``written``, its interval over heads, and its null over gates."""
    total, known = written.sum(), (len(written), int(acting.sum()))
    if not total > 0:
        return Share(measure, *(math.nan,) * 5, *known)
    value = float(written[:, 0].sum() / total)
    sums = resampled_sums(np.stack([written[:, 0], written.sum(1)], -1), seed)
    resampled = sums[:, 0][sums[:, 1] > 0] / sums[:, 1][sums[:, 1] > 0]
    sizes, additive = written[acting], np.nonzero(acting)[1] == 0
    null = float(additive.mean())
    generator = np.random.default_rng(seed)
    drawn = generator.permuted(np.tile(additive, (PERMUTATIONS, 1)), axis=1) @ sizes / total
    as_far = np.abs(drawn - null) >= abs(value - null) - 1e-12
    return Share(measure, value, *middle(resampled), null, float((1 + as_far.sum()) / (1 + PERMUTATIONS)), *known)


def _count_share(opened: Bool[np.ndarray, "head 2"]) -> Share:
    """The additive share of open gates, with the interval that the heads with one kind alone leave."""
    from scipy.stats import binomtest

    known = (len(opened), int(opened.sum()))
    if not len(opened):
        return Share("count", *(math.nan,) * 5, *known)
    alone = opened[opened.sum(1) == 1]
    if not len(alone):
        return Share("count", 0.5, 0.5, 0.5, 0.5, 1.0, *known)
    test = binomtest(int(alone[:, 0].sum()), len(alone))
    shares = (test.statistic, *test.proportion_ci(method="exact"))
    both = len(opened) - len(alone)  # a gate of either kind each
    value, low, high = (float(share * len(alone) + both) / known[1] for share in shares)
    return Share("count", value, low, high, 0.5, float(test.pvalue), *known)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
