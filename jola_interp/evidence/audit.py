"""Which of the reported numbers are facts: each is measured again after what may change without changing the function.

The symmetries are those of :mod:`jola_interp.evidence.symmetries`. A number is

    invariant         it moves under none of them
    basis-dependent   it moves when values are written in another basis, and only then
    not identified    it moves with the gate–vector scale, or with the head that hosts an offset

Nothing here is declared: a tag is what was seen on this model and this edit.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jola_interp import selection
from jola_interp.backends import attach, require_unedited
from jola_interp.batching import Encoded, encode_examples
from jola_interp.edits.base import Site, unit_label
from jola_interp.edits.jola import JoLA
from jola_interp.evaluation import metrics
from jola_interp.evaluation.likelihood import negative_log_likelihoods
from jola_interp.evaluation.metrics import Score
from jola_interp.evidence.symmetries import (
    Rehosted,
    TurnedJoLA,
    fresh,
    logit_change,
    output_weight,
    per_head,
    probe,
    rehosted,
    rescaled,
    rotated,
    rotated_edit,
    rotations,
)
from jola_interp.models import Model
from jola_interp.runs import Run
from jola_interp.tasks import Task, load_task

if TYPE_CHECKING:
    import pandas as pd

Tag = Literal["invariant", "basis-dependent", "not identified"]
Symmetry = Literal["scale", "basis", "re-hosting"]
TOLERANCE = 1e-4
"""A number has moved where it changed by more than this share of itself."""
NEARLY_NOTHING = 1e-6
"""Entries of a map below this share of its largest are rounding, before and after."""
CARRIED = 0.5
"""A move that leaves more than this share of its layer's sum behind is no re-hosting that a tag may rest on."""
ADDED, LAYER_SUM, SELECTED, STATUSES, SCORE = (
    "‖g_a a W_O‖",
    "‖Σ_h g_a a W_O‖",
    "selected",
    "statuses",
    "score",
)
_VECTORS = {"additive": ("‖a‖", "‖g_a a‖"), "multiplicative": ("‖m‖", "‖g_m m‖")}
Value = Float[np.ndarray, "..."] | frozenset[str]
"""A map of numbers, or a set of labels."""
WeightOf = Callable[[int], Float[Tensor, "head d_head d_model"]]
"""Layer to W_O."""


@dataclass(frozen=True)
class Number:
    """One reported number (or map of them) and what it is worth.

    Attributes:
        name: such as "‖a‖".
        tag: ``invariant``, ``basis-dependent`` or ``not identified``.
        changes: symmetry to the largest relative change of an entry, |after − before| / max(|before|, |after|); of a
            set, one minus the share that stays; of logits, the share of the largest.
        moved_by: the symmetries under which that is more than rounding (of a re-hosting: than what it left behind).
    """

    name: str
    tag: Tag
    changes: Mapping[str, float]
    moved_by: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"name": self.name, "tag": self.tag, "moved_by": list(self.moved_by), "changes": dict(self.changes)}


@dataclass(frozen=True)
class HeadAudit:
    """A selected head, and whether what it adds is its own.

    Attributes:
        label, layer, head, status: as selected.
        effect: ‖g_a·a W_O‖, what it adds to the residual stream; None where it adds nothing, as all that follows.
        share: how much of the squared norm of that lies in the span of the other heads' W_O in its layer.
        cost: norm of what the others must add for it, over ‖g_a·a‖.
        left: norm of what cannot be carried, over that of all that the layer adds.
        delta: ΔCE of the move (nats per answer token, mean over rows), with its interval; None without a task.
        identified: False where at least ``span`` of it can be hosted by the others, at a ΔCE of at most ``margin``.
    """

    label: str
    layer: int
    head: int
    status: str
    effect: float | None = None
    share: float | None = None
    cost: float | None = None
    left: float | None = None
    delta: Score | None = None
    identified: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Audit:
    """What of a Run's numbers is identified; made by :func:`audit`, which says how.

    Attributes:
        model, task: names; "" without a task.
        rows: how many rows the score is over; 0 without a task (then it is logits at random tokens).
        span, margin, seed: as asked for.
        numbers: one :class:`Number` each.
        heads: one :class:`HeadAudit` per selected head, best first.
        layer_sums: ‖Σ_h g_a·a W_O‖ per layer: the offsets of a layer are one bias, and this is its size.
        max_logit_change: symmetry to max |Δ logit| / max |logit| at random tokens: how well it was one.
        notes: what a reader must know beside: symmetries that could not be applied, or were not exact.
    """

    model: str
    task: str
    rows: int
    span: float
    margin: float
    seed: int
    numbers: tuple[Number, ...]
    heads: tuple[HeadAudit, ...]
    layer_sums: tuple[float, ...]
    max_logit_change: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def tags(self) -> dict[str, Tag]:
        """Number to tag."""
        return {number.name: number.tag for number in self.numbers}

    def head(self, label: str) -> HeadAudit | None:
        """A selected head by its label; None if it is not selected."""
        return next((head for head in self.heads if head.label == label), None)

    def sentence(self, label: str) -> str:
        """What may be said of a head: that it adds its offset only where no other head could.

        Raises:
            ValueError: no label of a head.
        """
        layer, separator, unit = label.removeprefix("L").partition("H")
        if not (separator and layer.isdigit() and unit.isdigit()):
            raise ValueError(f"label: {label!r} is not a head; write L<layer>H<head>, such as L3H7")
        found = self.head(label)
        if found is None:
            return f"{label} is not selected"
        if found.effect is None or found.share is None:
            return f"{label} scales its own output"
        also = f"; {label} also scales its own output" if found.status == "both" else ""
        delta = "" if found.delta is None else f", at ΔCE {found.delta.value:+.3f}"
        hosted = f"{100 * found.share:.0f} % of it can be hosted by others{delta}"
        if found.identified:
            return f"{label} adds an offset of norm {found.effect:.3g} to layer {layer} ({hosted}){also}"
        return f"an offset of layer {layer} that other heads could host as well ({hosted}){also}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": self.model,
            "task": self.task,
            "rows": self.rows,
            "span": self.span,
            "margin": self.margin,
            "seed": self.seed,
            "tolerance": TOLERANCE,
            "numbers": [number.to_dict() for number in self.numbers],
            "heads": [head.to_dict() for head in self.heads],
            "layer_sums": list(self.layer_sums),
            "max_logit_change": dict(self.max_logit_change),
            "notes": list(self.notes),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per number: its tag, what moved it, and by how much each symmetry changed it."""
        import pandas as pd

        rows = {
            number.name: {"tag": number.tag, "moved by": ", ".join(number.moved_by), **number.changes}
            for number in self.numbers
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("number")

    def heads_frame(self) -> pd.DataFrame:
        """One row per selected head."""
        import pandas as pd

        rows = []
        for head in self.heads:
            row = {key: value for key, value in head.to_dict().items() if key != "delta"}
            bounds = (np.nan, np.nan, np.nan)
            if head.delta is not None:
                bounds = (head.delta.value, head.delta.low, head.delta.high)
            rows.append(row | dict(zip(("delta", "delta_low", "delta_high"), bounds, strict=True)))
        columns = ["label", "layer", "head", "status", "effect", "share", "cost", "left"]
        columns += ["delta", "delta_low", "delta_high", "identified"]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        return "\n".join([self._title(), self.to_frame().to_string(float_format="{:.1e}".format), *self.notes])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        tables = self.to_frame().to_html(float_format="{:.1e}".format)
        if self.heads:
            tables += self.heads_frame().to_html(float_format="{:.3g}".format)
        return f"<p>{html.escape(self._title())}</p>{tables}{notes}"

    def _title(self) -> str:
        on = f"{self.task}, {self.rows} rows" if self.task else "random tokens"
        adding = [head for head in self.heads if head.effect is not None]
        own = sum(head.identified for head in adding)
        return f"Audit: {self.model} on {on}; {own} of {len(adding)} additive heads are identified"


def audit(
    run: Run,
    task: str | Task | None = None,
    model: str | Model | None = None,
    *,
    rows: int | None = None,
    span: float = 0.9,
    margin: float = 0.01,
    batch_size: int = 16,
    seed: int = 0,
    rule: str = selection.DEFAULT_RULE,
) -> Audit:
    """Measure every number, apply a symmetry, measure it again, for each symmetry of (model, edit).

    scale: every open gate's P(open) goes to the other side of 1/2 and its vector is divided by what the gate gained.
    basis: values of each key-value group are rotated at random, and with them W_O and the edit. re-hosting: the offset
    of ONE selected head moves to its layer-mates, that of the head which the others host best. The first two leave the
    function as it is; the last leaves a residue where the mates' W_O do not span the offset's effect, so there a
    number has moved only if it changed by more than that residue is of the layer's sum, and the score only if it
    changed by more than ``margin``. ``max_logit_change`` shows how exact each was.

    All passes are on plain float32 weights: the model itself if it is that, else a copy; the basis change makes
    another. A model that TransformerLens has wrapped is loaded or made anew. Every selected head that adds costs a
    pass over the rows (with a task) and a singular value decomposition.

    Args:
        run: whose edit.
        task: on whose test rows the score, NLL in nats per answer token, is taken. None is NOT the Run's own task: it
            means random tokens, at which the score is the logits themselves and no ΔCE can be taken.
        model: None is the Run's own.
        rows: only the first so many test rows.
        span: a head is not identified where at least this share of its offset's effect can be hosted by others …
        margin: … at a ΔCE of no more than so many nats (without a task by the share alone).
        batch_size: rows a pass.
        seed: of the rotations and the random tokens.
        rule: which heads count as selected: they are audited one by one, and the set and its statuses are tagged.

    Raises:
        ValueError: a number out of its range; a rule outside the grammar; ``rows`` without a task; a task without test
            rows; a model with an edit attached, without a tokenizer (with a task), quantised, or booted and neither to
            be loaded nor made again.
    """
    _check(span=(span, 0.0, 1.0), margin=(margin, 0.0, float("inf")))
    _check_whole(batch_size=(batch_size, 1), seed=(seed, 0), **({} if rows is None else {"rows": (rows, 1)}))
    selection.parse_rule(rule)
    data = _data(task, rows)
    target = run.model_or(model)
    require_unedited(target, "audit")
    work = fresh(target) if target.booted or target.dtype != torch.float32 else target
    bench = _Bench(work, run.edit, _encoded(run, work, data, rows), batch_size, seed, rule)
    before = bench.read(run.edit)
    selected = _selected(run.edit, rule)
    heads, moves = _heads(bench, before, selected, span, margin)
    after, notes = _transformed(bench, moves, margin)
    found = {name: reading for name, (reading, _) in after.items()}
    allowed = {name: allowance for name, (_, allowance) in after.items()}
    return Audit(
        model=target.name,
        task=data.name if data else "",
        rows=len(bench.rows),
        span=float(span),
        margin=float(margin),
        seed=seed,
        numbers=_numbers(before, found, allowed, margin),
        heads=heads,
        layer_sums=tuple(float(norm) for norm in before.values.get(LAYER_SUM, ())),
        max_logit_change={
            name: logit_change(before.logits, reading.logits)
            for name, reading in found.items()
            if reading.logits is not None and before.logits is not None
        },
        notes=notes,
    )


# -- measuring -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """All numbers of one (model, edit); no logits and no losses where no pass was possible."""

    values: Mapping[str, Value]
    logits: Tensor | None
    losses: Float[np.ndarray, " row"] | None


class _Bench:
    """A plain float32 model, the edit, the rows: what readings are taken with."""

    def __init__(self, model: Model, edit: JoLA, rows: Sequence[Encoded], batch_size: int, seed: int, rule: str):
        self.model, self.edit, self.rows = model, edit, rows
        self.batch_size, self.seed, self.rule = batch_size, seed, rule

    def read(self, edit: JoLA, model: Model | None = None, live: JoLA | None = None) -> _Reading:
        """Numbers of ``edit``, passes with ``live`` (None: the same), both on ``model`` (None: its own)."""
        on = model or self.model
        values = values_of(edit, lambda layer: output_weight(on, layer), self.rule)
        logits, losses = self._passes(live or edit, on)
        return _Reading(values, logits, losses)

    def losses(self, edit: JoLA) -> Float[np.ndarray, " row"]:
        """Nats per answer token of each row."""
        losses = self._passes(edit, self.model, logits=False)[1]
        assert losses is not None
        return losses

    def _passes(
        self, edit: JoLA, model: Model, logits: bool = True
    ) -> tuple[Tensor | None, Float[np.ndarray, " row"] | None]:
        own = edit.restricted().to(model.device).requires_grad_(False)
        losses = None
        with attach(own, model, "hooks") as attached:
            found = probe(model, seed=self.seed) if logits else None
            if self.rows:
                totals, counts = negative_log_likelihoods(model, self.rows, self.batch_size)
                losses = totals / counts
        attached.check_live()
        return found, losses


def values_of(edit: JoLA, weight_of: WeightOf, rule: str = selection.DEFAULT_RULE) -> dict[str, Value]:
    """The numbers that an edit is reported by, but for its score: name to a map [layer, unit], [layer] or a set.

    ``‖g_a a W_O‖`` is per head, ``‖Σ_h g_a a W_O‖`` per layer; units that are not editable are 0. Numbers of the
    other sites end in "(mlp)", "(attention)".
    """
    found: dict[str, Value] = {}
    for site in edit.masks():
        suffix = "" if site == "heads" else f" ({site})"
        found |= {name + suffix: value for name, value in _of_gates(edit, site, rule).items()}
        found |= {name + suffix: value for name, value in _of_vectors(edit, site).items()}
    return found | _of_effects(edit, weight_of)


def _of_gates(edit: JoLA, site: Site, rule: str) -> dict[str, Value]:
    """P(open) per kind, and what the rule makes of the gates; nothing without any."""
    logs = _log_alphas(edit, site)
    if not logs:
        return {}
    opens = {f"P(open) {kind}": np.nan_to_num(selection.measure("p_open", value)) for kind, value in logs.items()}
    chosen = selection.select(logs, rule, site=site)
    return opens | {SELECTED: frozenset(chosen.labels), STATUSES: frozenset(map(" ".join, _by_status(chosen)))}


def _by_status(chosen: selection.Selection) -> list[tuple[str, str]]:
    return list(zip(chosen.labels, chosen.statuses, strict=True))


def _of_vectors(edit: JoLA, site: Site) -> dict[str, Value]:
    """‖v‖ and ‖g·v‖ per unit."""
    part = edit.site(site)
    found: dict[str, Value] = {}
    for operation, acting in edit.at_inference(site).items():
        own = part.vector(operation) * part.mask[..., None]
        for name, array in zip(_VECTORS[operation], (own, acting), strict=True):
            found[name] = array.detach().cpu().double().norm(dim=-1).numpy()
    return found


def _of_effects(edit: JoLA, weight_of: WeightOf) -> dict[str, Value]:
    """What offsets write to the residual stream, per head and summed over each layer."""
    acting = edit.at_inference("heads").get("additive") if "heads" in edit.sites else None
    if acting is None:
        return {}
    each = acting.cpu().double()
    written = [torch.einsum("hd,hdm->hm", each[layer], weight_of(layer)) for layer in range(edit.shape.layers)]
    return {
        ADDED: np.stack([effect.norm(dim=-1).numpy() for effect in written]),
        LAYER_SUM: np.array([float(effect.sum(0).norm()) for effect in written]),
    }


def _log_alphas(edit: JoLA, site: Site) -> dict[str, np.ndarray]:
    """Kind to log α, NaN where a unit is not editable, as :meth:`Run.log_alphas` gives it."""
    mask = edit.masks()[site]
    logs = {kind: value for (at, kind), value in edit.log_alphas().items() if at == site}
    return {kind: torch.where(mask, value, torch.nan).cpu().numpy() for kind, value in logs.items()}


# -- transforming --------------------------------------------------------------------------------------------------


def _transformed(
    bench: _Bench, moves: Sequence[tuple[Rehosted, Score | None]], margin: float
) -> tuple[dict[Symmetry, tuple[_Reading, float]], tuple[str, ...]]:
    """Symmetry to (the reading after it, the relative change that it does not answer for), and what to note."""
    scaled = bench.read(rescaled(bench.edit))
    in_basis, notes = _in_basis(bench)
    found: dict[Symmetry, tuple[_Reading, float]] = {"scale": (scaled, TOLERANCE), "basis": (in_basis, TOLERANCE)}
    move = _best(moves, margin)
    if move is not None:
        found["re-hosting"] = (bench.read(move.edit), max(TOLERANCE, move.left * (1 + TOLERANCE)))
        notes.append(
            f"re-hosting moved the offset of {move.label} and left {100 * move.left:.2g} % of its layer's sum behind"
        )
    elif ADDED in scaled.values:
        notes.append("re-hosting was not applied: the other heads can host no selected offset within span and margin")
    return found, tuple(notes)


def _in_basis(bench: _Bench) -> tuple[_Reading, list[str]]:
    """The reading in rotated bases; of the numbers alone where the model's values cannot be turned."""
    turns = rotations(bench.model.head_shape, bench.seed)
    near = rotated_edit(bench.edit, turns)
    try:
        turned = rotated(bench.model, bench.seed)
    except ValueError as error:
        every = per_head(turns, bench.model.head_shape)
        values = values_of(near, lambda layer: every[layer].mT @ output_weight(bench.model, layer), bench.rule)
        return _Reading(values, None, None), [f"basis: numbers only, the score was not taken again ({error})"]
    return bench.read(near, turned, TurnedJoLA(bench.edit, turns)), []


def _best(moves: Sequence[tuple[Rehosted, Score | None]], margin: float) -> Rehosted | None:
    """The move that comes nearest to a symmetry, if any is one: of those within the margin, that which leaves least."""
    fit = [move for move, delta in moves if delta is None or abs(delta.value) <= margin]
    best = min(fit, key=lambda move: move.left, default=None)
    return best if best is not None and best.left <= CARRIED else None


def _heads(
    bench: _Bench, before: _Reading, selected: Sequence[tuple[int, int, str]], span: float, margin: float
) -> tuple[tuple[HeadAudit, ...], list[tuple[Rehosted, Score | None]]]:
    """The audit of each selected head, and the moves of those that are not identified."""
    from tqdm.auto import tqdm

    heads: list[HeadAudit] = []
    moves: list[tuple[Rehosted, Score | None]] = []
    effects = before.values.get(ADDED)
    for layer, unit, status in tqdm(selected, desc="re-hosting", leave=False):
        head = HeadAudit(unit_label("heads", layer, unit), layer, unit, status)
        if isinstance(effects, np.ndarray) and effects[layer, unit] > 0 and bench.edit.shape.heads > 1:
            move = rehosted(bench.edit, bench.model, (layer, unit))
            delta = None
            if before.losses is not None:
                delta = metrics.mean(bench.losses(move.edit) - before.losses)
            left = move.left if np.isfinite(move.left) else None  # the layer's offsets cancel
            identified = move.share < span or (delta is not None and delta.value > margin)
            head = HeadAudit(
                head.label, layer, unit, status, move.effect, move.share, move.cost, left, delta, identified
            )
            if not identified:
                moves.append((move, delta))
        heads.append(head)
    return tuple(heads), moves


def _selected(edit: JoLA, rule: str) -> list[tuple[int, int, str]]:
    """(layer, head, status) of each selected head, best first; without gates, each editable head that acts."""
    if "heads" not in edit.sites:
        return []
    logs = _log_alphas(edit, "heads")
    if logs:
        chosen = selection.select(logs, rule)
        return [(*unit, status) for unit, status in zip(chosen.units, chosen.statuses, strict=True)]
    acts = {name: vector.detach().ne(0).any(-1).cpu() for name, vector in edit.site("heads").vectors.items()}
    code = sum((1 + (name == "multiplicative")) * act.int() for name, act in acts.items()) * edit.masks()["heads"].cpu()
    assert isinstance(code, Tensor)
    return [(int(i), int(j), selection.STATUSES[int(code[i, j])]) for i, j in code.nonzero()]


# -- comparing -----------------------------------------------------------------------------------------------------


def _numbers(
    before: _Reading, after: Mapping[Symmetry, _Reading], allowed: Mapping[Symmetry, float], margin: float
) -> tuple[Number, ...]:
    found = []
    for name, value in before.values.items():
        changes = {symmetry: change(value, reading.values[name]) for symmetry, reading in after.items()}
        bounds: dict[Symmetry, float] = dict(allowed) if not isinstance(value, frozenset) else dict.fromkeys(allowed, 0)
        found.append(_number(name, changes, {symmetry for symmetry in changes if changes[symmetry] > bounds[symmetry]}))
    return (*found, _score(before, after, allowed, margin))


def _score(
    before: _Reading, after: Mapping[Symmetry, _Reading], allowed: Mapping[Symmetry, float], margin: float
) -> Number:
    """The score: mean NLL where there are rows, else all logits; not of a symmetry that no pass was possible for."""
    changes: dict[Symmetry, float] = {}
    moved: set[Symmetry] = set()
    for symmetry, reading in after.items():
        if reading.logits is None or before.logits is None:
            continue
        if before.losses is None or reading.losses is None:
            changes[symmetry] = logit_change(before.logits, reading.logits)
            beyond = changes[symmetry] > allowed[symmetry]
        else:
            means = before.losses.mean(), reading.losses.mean()
            changes[symmetry] = change(*map(np.asarray, means))
            beyond = changes[symmetry] > TOLERANCE
            if symmetry == "re-hosting":  # a symmetry by its ΔCE: what that forgives is no movement
                beyond = beyond and abs(means[1] - means[0]) > margin
        moved |= {symmetry} if beyond else set()
    return _number(SCORE, changes, moved)


def _number(name: str, changes: Mapping[Symmetry, float], moved: set[Symmetry]) -> Number:
    tag: Tag = "invariant"
    if moved:
        tag = "basis-dependent" if moved == {"basis"} else "not identified"
    found: dict[str, float] = {str(symmetry): value for symmetry, value in changes.items()}
    return Number(name, tag, found, tuple(symmetry for symmetry in changes if symmetry in moved))


def change(before: Value, after: Value) -> float:
    """max |after − before| / max(|before|, |after|) over entries; of sets, 1 − |both| / |either|."""
    if isinstance(before, frozenset) or isinstance(after, frozenset):
        one, other = frozenset(before), frozenset(after)
        return 1 - len(one & other) / len(one | other) if one | other else 0.0
    larger = np.maximum(np.abs(before), np.abs(after))
    counted = larger > NEARLY_NOTHING * larger.max(initial=0)
    moved = np.abs(np.asarray(after, dtype=float) - before)[counted] / larger[counted]
    return float(moved.max(initial=0))


# -- asked for -----------------------------------------------------------------------------------------------------


def _data(task: str | Task | None, rows: int | None) -> Task | None:
    if task is None:
        if rows is not None:
            raise ValueError(f"rows goes with a task, whose test rows it counts; got rows={rows} without one")
        return None
    data = task if isinstance(task, Task) else load_task(task)
    if not data.test:
        raise ValueError(f"task {data.name!r} has no test rows")
    return data


def _encoded(run: Run, model: Model, task: Task | None, rows: int | None) -> list[Encoded]:
    """The test rows as tokens, worded as in training."""
    if task is None:
        return []
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer: load_model(model, tokenizer=...)")
    train = run.config["train"]
    return encode_examples(
        task.test[:rows],
        model.tokenizer,
        wrapper=train["wrapper"],
        max_length=train["max_length"],
        eos=train["eos"],
        template=task.template if train["answers"] == "worded" else "{answer}",
    )


def _check(**numbers: tuple[float, float, float]) -> None:
    for field, (number, low, high) in numbers.items():
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or not low <= number <= high
            or math.isinf(number)
        ):
            raise ValueError(f"{field} must be a finite number from {low:g} to {high:g}, not {number!r}")


def _check_whole(**numbers: tuple[int, int]) -> None:
    for field, (number, least) in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{field} must be a whole number, {least} or more, not {number!r}")
