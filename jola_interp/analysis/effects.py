"""Does a gate matter: what the answers lose when it alone is closed, exactly, or to first order by one backward pass.

    effect[gate] = mean over rows of NLL(edit without the gate) − NLL(edit)      nats per answer token
    alone[gate]  = mean over rows of NLL(base) − NLL(the gate's part of the edit and nothing else)

A positive effect is a gate that helps. A gate that is 0 at inference, or whose vector is 0, changes nothing: its effect
is 0 exactly and is not computed. All others are closed (or opened) one by one, and each time only what stands above the
gate runs again (:mod:`jola_interp.backends.restart`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from jola_interp._log import logger
from jola_interp.analysis.rows import Rows, Split, prepared
from jola_interp.backends import Attachment, BackendName, attach
from jola_interp.backends.restart import RestartError, recorded, restarted
from jola_interp.batching import IGNORED, Batch, Encoded, answer_losses, batches_of, collate, pad_id
from jola_interp.edits.base import Context, Site, unit_label
from jola_interp.edits.jola import JoLA, Operation, SiteEdit
from jola_interp.evaluation.likelihood import batch_losses
from jola_interp.models import Model
from jola_interp.runs import Run
from jola_interp.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
Method = Literal["exact", "gradient", "alone"]
HALVINGS = 200
"""Random halvings of the rows over which a reliability is averaged."""


@dataclass(frozen=True)
class Gate:
    """One gate of an edit; in an edit without gates each operation of a unit stands for one that is 1.

    Attributes:
        value: what it is at inference, in [0, 1].
        acts: whether it changes anything: ``value`` and its vector are not 0.
    """

    site: Site
    kind: str
    layer: int
    unit: int
    value: float
    acts: bool

    @property
    def label(self) -> str:
        """Such as "L3H7"."""
        return unit_label(self.site, self.layer, self.unit)


@dataclass(frozen=True)
class Effects:
    """What closing each gate alone, or opening it alone, does to the answers' likelihood.

    Attributes:
        method: ``exact``: each gate was closed in turn. ``gradient``: −g·∂NLL/∂g, the first-order term of that.
            ``alone``: each gate was opened in turn, with all others closed.
        gates: the gates, in the order of layers and units; each has a label, site, kind, layer, unit and value.
        by_row: what the gate takes off the mean NLL of each row's answer (nats per token); 0 where it does not act.
        nll: mean NLL of each row's answer under the whole edit, nats per token; without an edit for ``alone``.
        measured: which gates were closed or opened in passes of their own (or had a gradient taken).
        estimate: the gradient's estimate of each effect, where it was asked for beside the exact one.
    """

    method: Method
    gates: tuple[Gate, ...]
    by_row: Float[np.ndarray, "gate row"] = field(repr=False)
    nll: Float[np.ndarray, " row"] = field(repr=False)
    measured: Bool[np.ndarray, " gate"] = field(repr=False)
    estimate: Float[np.ndarray, " gate"] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.gates)

    @property
    def labels(self) -> tuple[str, ...]:
        """Such as "L3H7", one per gate; a unit with two gates stands twice."""
        return tuple(gate.label for gate in self.gates)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of each gate."""
        return tuple(gate.kind for gate in self.gates)

    @property
    def layers(self) -> Int[np.ndarray, " gate"]:
        return np.array([gate.layer for gate in self.gates], dtype=np.int64)

    @property
    def units(self) -> Int[np.ndarray, " gate"]:
        """The head of each gate; 0 at the MLP."""
        return np.array([gate.unit for gate in self.gates], dtype=np.int64)

    @property
    def effect(self) -> Float[np.ndarray, " gate"]:
        """Mean over rows, nats per answer token; positive: the gate helps."""
        return np.asarray(self.by_row.mean(1))

    @property
    def se(self) -> Float[np.ndarray, " gate"]:
        """Standard error of the effect over rows; NaN for a single row."""
        n = self.by_row.shape[1]
        return np.asarray(self.by_row.std(1, ddof=1) / math.sqrt(n)) if n > 1 else np.full(len(self), np.nan)

    @property
    def reliability(self) -> float:
        """2r/(1 + r), r the correlation over gates of the effects on one half of the rows with those on the other.

        r is the mean over random halvings; 2r/(1 + r) is Spearman and Brown's estimate for all rows together (r itself
        where it is negative). Only gates that were measured count. NaN with fewer than three of them, fewer than four
        rows, or no variation.
        """
        values = self.by_row[self.measured]
        n = values.shape[1]
        if len(values) < 3 or n < 4:
            return math.nan
        draws = np.random.default_rng(0)
        orders = [draws.permutation(n) for _ in range(HALVINGS)]
        halves = [(values[:, o[: n // 2]].mean(1), values[:, o[n // 2 :]].mean(1)) for o in orders]
        if any(half.std() == 0 for pair in halves for half in pair):
            return math.nan
        r = float(np.mean([np.corrcoef(*pair)[0, 1] for pair in halves]))
        return 2 * r / (1 + r) if r > 0 else r

    def top(self, k: int) -> Effects:
        """The ``k`` gates that help most, best first."""
        return self._take(np.argsort(-self.effect, kind="stable")[:k])

    def first(self, rows: int) -> Effects:
        """The effects on the first so many rows; an estimate, which is of all of them, is left out."""
        return replace(self, by_row=self.by_row[:, :rows], nll=self.nll[:rows], estimate=None)

    def to_frame(self) -> pd.DataFrame:
        """One row per gate: label, site, kind, layer, head, gate (its value), effect, se, measured, estimate."""
        import pandas as pd

        columns: dict[str, Any] = {
            "label": self.labels,
            "site": [gate.site for gate in self.gates],
            "kind": self.kinds,
            "layer": self.layers,
            "head": self.units,
            "gate": [gate.value for gate in self.gates],
            "effect": self.effect,
            "se": self.se,
            "measured": self.measured,
        }
        return pd.DataFrame(columns if self.estimate is None else columns | {"estimate": self.estimate})

    def _take(self, chosen: Int[np.ndarray, " chosen"]) -> Effects:
        gates = tuple(self.gates[place] for place in chosen)
        estimate = None if self.estimate is None else self.estimate[chosen]
        return Effects(self.method, gates, self.by_row[chosen], self.nll, self.measured[chosen], estimate)


def leave_one_out(
    run: Run,
    task: str | Task,
    model: str | Model | None = None,
    *,
    split: Split = "test",
    rows: int = 64,
    kinds: Iterable[str] | None = None,
    units: Iterable[str | tuple[int, int]] | None = None,
    every: bool = False,
    estimate: bool = False,
    naive: bool = False,
    batch_size: int = 16,
) -> Effects:
    """effect = NLL(edit without the gate) − NLL(edit) for every gate of a Run, each closed alone.

    Costs about half a pass over the rows for each gate that acts. In bfloat16 small effects drown in rounding: hand in
    the model in float32.

    Args:
        run: whose kept edit is taken apart.
        task: whose rows to use, encoded as in training; a name or a Task.
        model: None is the Run's own.
        split: ``test`` or ``validation``.
        rows: the first so many rows of it.
        kinds: only these kinds of gates ("additive", "multiplicative", "shared"); None is all.
        units: only these units ("L3H7", (3, 7), "L3MLP", or a Selection); None is all.
        every: also run the gates that do not act, whose effect is 0.
        estimate: also the gradient's estimate (:func:`gradient_estimate`), in the column of that name.
        naive: run the whole model for every gate.
        batch_size: rows in one pass; the states of one batch are kept, layers × rows × positions × d_model numbers.

    Raises:
        ValueError: a field outside its range, an empty split, an edit that is attached to the model already, or
            nothing left to measure.
        RestartError: the architecture does not allow restarts; ``naive=True`` needs none.
        EditNotLiveError: the edit did not act in every pass.
    """
    read = _prepared(run, task, model, split, rows, batch_size, "leave_one_out")
    chosen = select_gates(run.edit, kinds, units)
    options: dict[str, Any] = {"backend": read.backend, "batch_size": batch_size}
    found = exact_effects(run.edit, read.model, read.encoded, chosen, every=every, naive=naive, **options)
    if not estimate:
        return found
    guessed = estimated_effects(run.edit, read.model, read.encoded, chosen, **options)
    return replace(found, estimate=guessed.effect)


def even_without_restarts(measure: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """``measure(…)``, with ``naive=True`` where the architecture allows no restarts: slower, the same numbers."""
    try:
        return measure(*arguments, **options)
    except RestartError as error:
        logger.warning("%s; the whole model is run every time", error)
        return measure(*arguments, naive=True, **options)


def gradient_estimate(
    run: Run,
    task: str | Task,
    model: str | Model | None = None,
    *,
    split: Split = "test",
    rows: int = 64,
    kinds: Iterable[str] | None = None,
    units: Iterable[str | tuple[int, int]] | None = None,
    batch_size: int = 16,
) -> Effects:
    """effect ≈ −g·∂NLL/∂g for every gate of a Run: the first-order effect of closing it, all gates by one backward.

    Arguments and errors as in :func:`leave_one_out`. Source: Michel et al. 2019 (arXiv 1905.10650), who take the
    gradient at head masks in place of gates; its sign is kept here.
    """
    read = _prepared(run, task, model, split, rows, batch_size, "gradient_estimate")
    chosen = select_gates(run.edit, kinds, units)
    return estimated_effects(run.edit, read.model, read.encoded, chosen, backend=read.backend, batch_size=batch_size)


def add_one_in(
    run: Run,
    task: str | Task,
    model: str | Model | None = None,
    *,
    split: Split = "test",
    rows: int = 64,
    kinds: Iterable[str] | None = None,
    units: Iterable[str | tuple[int, int]] | None = None,
    naive: bool = False,
    batch_size: int = 16,
) -> Effects:
    """effect = NLL(base) − NLL(only this gate's part of the edit) for every gate of a Run, each opened alone.

    Beside :func:`leave_one_out` it tells what others stand in for (much alone, little when left out) from what works
    with others only (little alone, much when left out). Costs, arguments and errors as there.
    """
    read = _prepared(run, task, model, split, rows, batch_size, "add_one_in")
    chosen = select_gates(run.edit, kinds, units)
    options: dict[str, Any] = {"backend": read.backend, "naive": naive, "batch_size": batch_size}
    return alone_effects(run.edit, read.model, read.encoded, chosen, **options)


def select_gates(
    edit: JoLA, kinds: Iterable[str] | None = None, units: Iterable[str | tuple[int, int]] | None = None
) -> tuple[Gate, ...]:
    """The gates of an edit's editable units, by site, layer, unit and kind.

    Raises:
        ValueError: a kind or unit that the edit does not have.
    """
    found = [gate for site in edit.sites for gate in _gates_at(edit, cast(Site, site))]
    found.sort(key=lambda gate: (gate.layer, list(edit.sites).index(gate.site), gate.unit))
    if kinds is not None:
        wanted, known = set(kinds), {gate.kind for gate in found}
        if unknown := wanted - known:
            raise ValueError(f"kinds must be a subset of {sorted(known)}, got {sorted(unknown)}")
        found = [gate for gate in found if gate.kind in wanted]
    if units is not None:
        names = {name.upper() if isinstance(name, str) else unit_label("heads", *name) for name in units}
        if strangers := names - {gate.label for gate in found}:
            raise ValueError(f"units: {sorted(strangers)} are not editable units of this edit")
        found = [gate for gate in found if gate.label in names]
    if not found:
        raise ValueError("kinds/units: no gate is left")
    return tuple(found)


@torch.no_grad()
def exact_effects(
    edit: JoLA,
    model: Model,
    rows: Sequence[Encoded],
    gates: Sequence[Gate] | None = None,
    *,
    backend: BackendName = "lens",
    every: bool = False,
    naive: bool = False,
    batch_size: int = 16,
) -> Effects:
    """:func:`leave_one_out` for an edit, a model and rows that are encoded already; arguments as there."""
    chosen = select_gates(edit) if gates is None else tuple(gates)
    part = edit.restricted().to(model.device).requires_grad_(False)
    measured = np.array([every or gate.acts for gate in chosen])
    closing = [gate for gate, wanted in zip(chosen, measured, strict=True) if wanted]
    passes = partial(whole_losses if naive else restarted_losses, change=closed)
    losses = _mean_losses(part, model, rows, closing, passes, backend, batch_size)
    by_row = np.zeros((len(chosen), len(rows)))
    by_row[measured] = losses[1:] - losses[0]
    return Effects("exact", chosen, by_row, losses[0], measured)


@torch.no_grad()
def alone_effects(
    edit: JoLA,
    model: Model,
    rows: Sequence[Encoded],
    gates: Sequence[Gate] | None = None,
    *,
    backend: BackendName = "lens",
    naive: bool = False,
    batch_size: int = 16,
) -> Effects:
    """:func:`add_one_in` for an edit, a model and rows that are encoded already; arguments as there."""
    chosen = select_gates(edit) if gates is None else tuple(gates)
    whole = edit.restricted().to(model.device).requires_grad_(False)
    bare = whole.restricted(strength=0.0)
    measured = np.array([gate.acts for gate in chosen])
    opening = [gate for gate in chosen if gate.acts]
    passes = partial(whole_losses if naive else restarted_losses, change=partial(opened, whole=whole))
    losses = _mean_losses(bare, model, rows, opening, passes, backend, batch_size)
    by_row = np.zeros((len(chosen), len(rows)))
    by_row[measured] = losses[0] - losses[1:]
    return Effects("alone", chosen, by_row, losses[0], measured)


def estimated_effects(
    edit: JoLA,
    model: Model,
    rows: Sequence[Encoded],
    gates: Sequence[Gate] | None = None,
    *,
    backend: BackendName = "lens",
    batch_size: int = 16,
) -> Effects:
    """:func:`gradient_estimate` for an edit, a model and rows that are encoded already; arguments as there."""
    chosen = select_gates(edit) if gates is None else tuple(gates)
    part = _Factored(edit.shape, **edit.settings())
    part.load_tensors(edit.tensors()).to(model.device).requires_grad_(False)
    by_row, nll = np.zeros((len(chosen), len(rows))), np.zeros(len(rows))
    with attach(part, model, backend) as attached, torch.enable_grad():
        for chunk in batches_of([len(row.ids) for row in rows], batch_size):
            batch = collated(model, [rows[i] for i in chunk])
            logits = model.logits(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask)
            losses = answer_losses(logits, batch.labels).sum(1) / (batch.labels != IGNORED).sum(1)
            gradients = torch.autograd.grad(losses.sum(), list(part.factors.values()))
            found = {key: value.cpu().numpy() for key, value in zip(part.factors, gradients, strict=True)}
            nll[chunk] = losses.detach().cpu().numpy()
            for place, gate in enumerate(chosen):
                by_row[place, chunk] = -found[gate.site, gate.kind][:, gate.layer, gate.unit]
        attached.check_live()
    return Effects("gradient", chosen, by_row, nll, np.array([gate.acts for gate in chosen]))


# -- passes ------------------------------------------------------------------------------------------------------------


@contextmanager
def closed(edit: JoLA, gate: Gate) -> Iterator[None]:
    """Close one gate of an edit, in place: the vectors that listen to it are 0 inside."""
    with _moved(_vectors_of(edit, gate), [torch.zeros(())] * len(_vectors_of(edit, gate))):
        yield


@contextmanager
def opened(edit: JoLA, gate: Gate, whole: JoLA) -> Iterator[None]:
    """Open one gate of an edit, in place: the vectors that listen to it are those of ``whole`` inside."""
    with _moved(_vectors_of(edit, gate), _vectors_of(whole, gate)):
        yield


Change = Callable[[JoLA, Gate], AbstractContextManager[None]]
"""What is done to one gate of an edit for the time of a pass."""


def restarted_losses(
    edit: JoLA, attached: Attachment, rows: list[Encoded], gates: list[Gate], change: Change = closed
) -> Iterator[np.ndarray]:
    """Σ −log p of each row's answer, under the edit and then with each gate changed; only what changes runs."""
    model = attached.model
    batch = collated(model, rows)
    with recorded(model, attached, read=read_at(batch)) as recording:
        first = marked_losses(model, batch)
    yield first
    for gate in gates:
        with restarted(recording, gate.layer), change(edit, gate):
            found = marked_losses(model, batch)
        yield found


def whole_losses(
    edit: JoLA, attached: Attachment, rows: list[Encoded], gates: list[Gate], change: Change = closed
) -> Iterator[np.ndarray]:
    """The same by whole passes."""
    yield batch_losses(attached.model, rows)
    for gate in gates:
        with change(edit, gate):
            found = batch_losses(attached.model, rows)
        yield found


def _mean_losses(
    edit: JoLA,
    model: Model,
    rows: Sequence[Encoded],
    gates: list[Gate],
    passes: Callable[[JoLA, Attachment, list[Encoded], list[Gate]], Iterator[np.ndarray]],
    backend: BackendName,
    batch_size: int,
) -> Float[np.ndarray, "pass row"]:
    """Mean NLL of each row's answer, in nats per token: under the edit, then with each gate changed."""
    losses = np.zeros((len(gates) + 1, len(rows)))
    with attach(edit, model, backend) as attached, progress(len(gates), rows, batch_size, "gates") as bar:
        for chunk in batches_of([len(row.ids) for row in rows], batch_size):
            some = [rows[i] for i in chunk]
            for place, found in enumerate(passes(edit, attached, some, gates)):
                losses[place, chunk] = found
                bar.update(place > 0)
        attached.check_live()
    return np.asarray(losses / np.array([row.n_answer for row in rows]))


def _vectors_of(edit: JoLA, gate: Gate) -> list[Tensor]:
    """The vectors that listen to a gate: views of the edit's own, [width]."""
    part = edit.site(gate.site)
    found = [vector.data for name, vector in part.vectors.items() if _kind(part, name) == gate.kind]
    return [vector[gate.layer, gate.unit] for vector in found]


@contextmanager
def _moved(vectors: list[Tensor], values: list[Tensor]) -> Iterator[None]:
    """Other values for some vectors, in place; on leaving, also by an exception, they are what they were."""
    kept = [vector.clone() for vector in vectors]
    try:
        for vector, value in zip(vectors, values, strict=True):
            vector.copy_(value)
        yield
    finally:
        for vector, value in zip(vectors, kept, strict=True):
            vector.copy_(value)


def read_at(batch: Batch) -> Bool[Tensor, "row kept"]:
    """The last positions whose logits predict an answer token: one before each of them."""
    return F.pad(batch.labels != IGNORED, (0, 1))


def collated(model: Model, rows: Sequence[Encoded]) -> Batch:
    """Rows as one batch on the model's device."""
    return collate(rows, pad_id(model.tokenizer) if model.tokenizer is not None else 0, model.device)


def marked_losses(model: Model, batch: Batch) -> Float[np.ndarray, " row"]:
    """Σ −log p of each row's answer, of a pass that gives just the logits that predict it (:func:`read_at`)."""
    logits = model.forward(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask).logits[0]
    answer = batch.labels != IGNORED
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(precise, batch.labels[answer], reduction="none").double().cpu().numpy()
    owners = answer.nonzero()[:, 0].cpu().numpy()
    return np.bincount(owners, losses, len(batch.rows))


class _Factored(JoLA):
    """An edit whose every gate is multiplied by a factor of 1 for each row: g·∂NLL/∂g is that factor's gradient."""

    factors: dict[tuple[str, str], Tensor]
    """(site, kind) to the factors of the last pass, [row, layer, unit]."""

    def prepare(self, context: Context, dtype: torch.dtype) -> dict[str, list[tuple[Tensor | None, Tensor | None]]]:
        """As :meth:`JoLA.prepare`, with a batch dimension in front."""
        assert context.attention_mask is not None
        rows, device = len(context.attention_mask), context.attention_mask.device
        self.factors = {}
        prepared: dict[str, list[tuple[Tensor | None, Tensor | None]]] = {}
        for name, part in self._parts():
            for kind in _kinds(part):
                ones = torch.ones(rows, *part.mask.shape, device=device)
                self.factors[name, kind] = ones.requires_grad_()
            values = part.gate_values(self.inference, {})
            scale, shift = (self._factored(name, op, values) for op in ("multiplicative", "additive"))
            scales = [None] * self.shape.layers if scale is None else [(1 + x).to(dtype) for x in scale]
            shifts = [None] * self.shape.layers if shift is None else [x.to(dtype) for x in shift]
            prepared[name] = list(zip(scales, shifts, strict=True))
        return prepared

    def _factored(self, site: Site, operation: Operation, values: dict[str, Tensor]) -> list[Tensor] | None:
        """factor·g·v of each layer: [row, 1, head, width] for heads, [row, 1, width] for the MLP."""
        part = self.site(site)
        gated = part.gated(operation, values)
        if gated is None:
            return None
        product = self.factors[site, _kind(part, operation)][..., None] * gated  # [row, layer, unit, width]
        return [x[:, None] if site == "heads" else x for x in product.unbind(1)]


# -- gates and arguments -----------------------------------------------------------------------------------------------


def _gates_at(edit: JoLA, site: Site) -> Iterator[Gate]:
    part = edit.site(site)
    values = part.gate_values(edit.inference, {})
    for kind in _kinds(part):
        gate = values.get(kind, torch.ones(part.mask.shape)).detach().cpu()
        moving = [v.detach().ne(0).any(-1).cpu() for name, v in part.vectors.items() if _kind(part, name) == kind]
        acts = torch.stack(moving).any(0) & (gate != 0)
        for layer, unit in part.mask.nonzero().tolist():
            yield Gate(site, kind, layer, unit, float(gate[layer, unit]), bool(acts[layer, unit]))


def _kinds(part: SiteEdit) -> tuple[str, ...]:
    """Kinds of gates; the operations where the edit has none."""
    return part.kinds or part.operations


def _kind(part: SiteEdit, operation: str) -> str:
    """The kind of gate that an operation listens to; its own name where the edit has none."""
    return part.gate_of(cast(Operation, operation)) if part.kinds else operation


def _prepared(
    run: Run, task: str | Task, model: str | Model | None, split: Split, rows: int, batch_size: int, what: str
) -> Rows:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer ≥ 1; got {batch_size!r}")
    return prepared(run, task, model, split=split, rows=rows, what=what)


def progress(passes: int, rows: Sequence[Encoded], batch_size: int, what: str) -> Any:
    """A bar that counts passes over all batches; none where the log is quiet."""
    from tqdm.auto import tqdm

    total = passes * math.ceil(len(rows) / batch_size)
    return tqdm(total=total, desc=what, disable=logger.getEffectiveLevel() > 30, leave=False)
