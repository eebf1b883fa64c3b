"""A known truth: a sparse edit planted in a model, what each of its gates is worth, and which heads could host it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jola_interp import selection
from jola_interp.activations import unit_rms
from jola_interp.backends import attach, require_unedited
from jola_interp.backends.restart import Recording, RestartError, recorded, restarted
from jola_interp.batching import Batch, Encoded, batches_of, collate, pad_id
from jola_interp.edits.base import Context, HeadShape, Site, unit_label
from jola_interp.edits.jola import JoLA, Operation
from jola_interp.evidence.endpoint import encode_rows
from jola_interp.evidence.symmetries import output_weight
from jola_interp.objective import answer_logits

if TYPE_CHECKING:
    from jola_interp.backends import BackendName
    from jola_interp.config import TrainConfig
    from jola_interp.models import Model
    from jola_interp.runs import Run
    from jola_interp.tasks import Task

ROWS = 32
"""Training rows that are read, at most."""
ANSWER_TOKENS = 256
"""Effects are measured on as many of the rows as hold so many answer tokens."""
TOKENS = 256
"""Tokens whose z says which head could host a scale of another."""
EXCHANGEABLE = 0.99
"""A head that can write this share (of the squared norm) of a planted gate's effect could host it as well."""
TRIES = 100
"""Draws for one head, at most, until each of its gates is worth enough."""
SIZES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Sizes where no Run gives them: of an offset in units of rms(z), of a scale as a share of z."""
RANK = 1e-6
"""Singular values below this share of the largest count as 0."""

Sizes = Mapping[Operation, tuple[float, ...]]


# -- what is drawn -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prior:
    """What planted edits are drawn from; every entry of a tuple is as likely as the next.

    Attributes:
        statuses: "additive", "multiplicative" or "both".
        sizes: operation to ‖v‖/√d_head, of an offset in units of rms(z) of its head.
        layers: weight of each layer; heads of one layer are equally likely.
    """

    statuses: tuple[str, ...]
    sizes: Sizes
    layers: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.statuses or set(self.statuses) - set(selection.STATUSES[1:]):
            raise ValueError(f"prior.statuses must be among {', '.join(selection.STATUSES[1:])}; got {self.statuses}")
        for operation in self.operations:
            sizes = self.sizes.get(operation, ())
            if not sizes or not all(math.isfinite(size) and size > 0 for size in sizes):
                raise ValueError(f"prior.sizes[{operation!r}] must be positive numbers, one or more; got {sizes}")
        if not self.layers or min(self.layers) < 0 or not sum(self.layers) > 0:
            raise ValueError(f"prior.layers must be weights ≥ 0, not all of them 0; got {self.layers}")

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Those that can be drawn."""
        return tuple(op for op in get_args(Operation) if {op, "both"} & set(self.statuses))


def default_prior(shape: HeadShape, operations: Sequence[Operation] = get_args(Operation)) -> Prior:
    """Every status that the operations allow and every layer equally likely, with ``SIZES``."""
    statuses = selection.STATUSES[1:] if len(operations) == 2 else tuple(operations)
    return Prior(statuses, {operation: SIZES for operation in operations}, (1.0,) * shape.layers)


def prior_of(run: Run, rms: Float[Tensor, "layer head"], rule: str = selection.DEFAULT_RULE) -> Prior:
    """Statuses and sizes as they are among the heads that a Run selects; layers by their share of them, plus one head.

    Args:
        run: a Run with gates on heads.
        rms: rms(z) of every head on the Run's rows.
        rule: which heads count as selected.

    Raises:
        ValueError: a Run that selects no head.
    """
    codes = selection.status(run.log_alphas(), rule)
    chosen = np.argwhere(codes > 0)
    if not len(chosen):
        raise ValueError(f"run: {rule} selects no head of {run.path}, so that it has no sizes to draw from")
    statuses = tuple(selection.STATUSES[codes[layer, head]] for layer, head in chosen)
    layers = tuple(float(count) + 1 / codes.shape[1] for count in (codes > 0).sum(1))
    return Prior(statuses, _sizes_of(run.edit, rms, codes), layers)


@torch.no_grad()
def _sizes_of(edit: JoLA, rms: Float[Tensor, "layer head"], codes: np.ndarray) -> Sizes:
    """‖g·v‖/√d_head of the open gates, offsets in units of rms(z)."""
    found: dict[Operation, tuple[float, ...]] = {}
    codes_of: dict[Operation, int] = {"additive": 1, "multiplicative": 2}
    at_inference = edit.at_inference("heads")
    for operation, code in codes_of.items():
        if operation not in at_inference:
            continue
        acting = at_inference[operation]
        size = acting.norm(dim=-1).cpu() / math.sqrt(acting.shape[-1])
        size = size / rms if operation == "additive" else size
        sizes = size.numpy()[(codes & code) > 0]
        found[operation] = tuple(float(value) for value in sizes[sizes > 0])
    return {operation: sizes for operation, sizes in found.items() if sizes}


# -- what was planted ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlantedGate:
    """One planted vector, whose gate is 1.

    Attributes:
        layer, head: where.
        operation: "additive" or "multiplicative".
        size: ‖a‖/(√d_head·rms(z)) or ‖m‖/√d_head.
        effect: KL(base with this gate alone ‖ base), in nats per answer token.
        hosts: other heads of the layer that can write ≥ 99 % (``EXCHANGEABLE``) of its effect by the same operation.
    """

    layer: int
    head: int
    operation: Operation
    size: float
    effect: float
    hosts: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """Such as "L3H7"."""
        return unit_label("heads", self.layer, self.head)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "hosts": list(self.hosts)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave."""
        return cls(**{**content, "hosts": tuple(content["hosts"])})


@dataclass(frozen=True, eq=False)
class Planting:
    """A planted edit.

    Attributes:
        teacher: the edit, without gates; zero wherever nothing is planted.
        gates: its vectors, one by one.
        effect: KL(base with the teacher ‖ base), in nats per answer token.
        rejected: heads that were drawn and dropped because one of their gates was worth less than asked for.
    """

    teacher: JoLA
    gates: tuple[PlantedGate, ...]
    effect: float
    rejected: int


class Ground:
    """A model and the rows on which planted edits are measured.

    Args:
        model: without an edit whenever it is read.
        task: whose training rows.
        settings: how rows are encoded.
        backend: how to reach the activations.
    """

    def __init__(self, model: Model, task: Task, settings: TrainConfig, backend: BackendName):
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer: load_model(model, tokenizer=...)")
        require_unedited(model, "planting")
        self.model, self.backend, self.shape = model, backend, model.head_shape
        self.rows = encode_rows(model, task, task.train[:ROWS], settings)
        pad = pad_id(model.tokenizer)
        measured = _first_with(self.rows, ANSWER_TOKENS)
        places = batches_of([len(row.ids) for row in measured], 16)
        self._batches = [collate([measured[i] for i in chosen], pad, model.device) for chosen in places]

    @cached_property
    def rms(self) -> Float[Tensor, "layer head"]:
        """sqrt(mean z²) of every head of the base model."""
        return unit_rms(self.model, self.rows, ("heads",), self.backend)["heads"]

    @torch.no_grad()
    def effect(self, edit: JoLA) -> float:
        """KL(base with ``edit`` ‖ base), in nats per answer token. The base is read once, an edit from its layer on."""
        layer = _first_layer(edit)
        if layer is None:
            return 0.0
        base, total = self._base, 0.0
        with attach(edit.to(self.model.device), self.model, self.backend):
            for batch, (recording, log_q) in zip(self._batches, base, strict=True):
                with nullcontext() if recording is None else restarted(recording, layer):
                    log_p = self._log_p(batch)
                total += float((log_p.exp() * (log_p - log_q)).sum())
        return max(0.0, total / sum(batch.n_answer_tokens for batch in self._batches))

    @cached_property
    def _base(self) -> list[tuple[Recording | None, Float[Tensor, "token vocab"]]]:
        """Each batch's pass without an edit, to go on from, and its log-probabilities at the answers.

        The pass is None on architectures that cannot be restarted.
        """
        return [self._recorded(batch) for batch in self._batches]

    @torch.no_grad()
    def _recorded(self, batch: Batch) -> tuple[Recording | None, Float[Tensor, "token vocab"]]:
        try:
            with recorded(self.model) as recording:
                return recording, self._log_p(batch)
        except RestartError:
            return None, self._log_p(batch)

    def _log_p(self, batch: Batch) -> Float[Tensor, "token vocab"]:
        """log p at every answer token, in float32."""
        logits = self.model.logits(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask)
        return answer_logits(logits, batch).float().log_softmax(-1)

    @cached_property
    def z(self) -> Float[Tensor, "layer token head d_head"]:
        """z of the base model at the first ``TOKENS`` tokens, on the CPU."""
        reader = _Reader(self.shape, gates="none").reset()
        with attach(reader, self.model, self.backend), torch.no_grad():
            for batch in self._batches:
                if reader.tokens < TOKENS:
                    self.model.logits(batch.input_ids, batch.attention_mask, 1)
        return torch.stack([torch.cat(parts)[:TOKENS] for parts in reader.found])

    def hosts(self, layer: int, head: int, operation: Operation, vector: Float[Tensor, " d_head"]) -> tuple[int, ...]:
        """Other heads of the layer that can write ``EXCHANGEABLE`` of what (operation, vector) does on ``head``."""
        shares = self.shares(layer, head, operation, vector)
        return tuple(other for other, share in enumerate(shares) if other != head and share >= EXCHANGEABLE)

    def shares(
        self, layer: int, head: int, operation: Operation, vector: Float[Tensor, " d_head"]
    ) -> Float[np.ndarray, " head"]:
        """‖projection of e onto what each head of the layer can write‖² / ‖e‖², e the vector's effect behind W_O.

        additive: e = a W_O[h], and a head writes any row of its own W_O: known from the weights alone.
        multiplicative: e(t) = (m ⊙ z_h(t)) W_O[h] over the tokens t, and head j writes (m' ⊙ z_j(t)) W_O[j] with any
        m': least squares over ``TOKENS`` tokens of the base model. In [0, 1], in float64; 1 for ``head`` itself.
        """
        weight, v = output_weight(self.model, layer), vector.to("cpu", torch.float64)
        if operation == "additive":
            return np.array([_written(host, v @ weight[head]) for host in weight])
        z = self.z[layer].double()
        own, total = weight[head], ((z[:, head] * v) @ weight[head]).square().sum()
        found = []
        for other, host in enumerate(weight):
            cross = ((z[:, other].T @ z[:, head]) * (host @ own.T)) @ v  # [d_head]
            gram = (z[:, other].T @ z[:, other]) * (host @ host.T)
            found.append(float(cross @ torch.linalg.pinv(gram, rtol=RANK, hermitian=True) @ cross / total))
        return np.array(found)


def _first_with(rows: Sequence[Encoded], tokens: int) -> Sequence[Encoded]:
    """The first rows that hold so many answer tokens together; all of them where they hold less."""
    totals = np.cumsum([row.n_answer for row in rows])
    return rows[: int(np.searchsorted(totals, tokens)) + 1]


def _first_layer(edit: JoLA) -> int | None:
    """The lowest layer at which the edit has a vector that is not 0; None if there is none."""
    acting = [vector.ne(0).flatten(1).any(1) for vector in edit.site("heads").vectors.values()]
    layers = torch.stack(acting).any(0).nonzero()
    return int(layers[0]) if len(layers) else None


def _written(weight: Float[Tensor, "d_head d_model"], effect: Float[Tensor, " d_model"]) -> float:
    """The share of ``effect`` that lies in the span of the rows."""
    _, values, basis = torch.linalg.svd(weight, full_matrices=False)
    return float((basis[values > RANK * values[0]] @ effect).square().sum() / effect.square().sum())


class _Reader(JoLA):
    """The identity, which keeps z of the tokens that are no padding."""

    def reset(self) -> _Reader:
        self.found: list[list[Tensor]] = [[] for _ in range(self.shape.layers)]
        return self

    @property
    def tokens(self) -> int:
        """How many have been read."""
        return sum(len(part) for part in self.found[0])

    def forward(self, activation: Tensor, layer: int, site: Site, context: Context) -> Tensor:  # noqa: ARG002
        if context.attention_mask is None:
            raise ValueError("reading z needs the attention mask: padding is not read")
        real = context.attention_mask.to(activation.device) == 1
        self.found[layer].append(activation[real].float().cpu())  # [token, head, d_head]
        return activation


# -- planting ------------------------------------------------------------------------------------------------------


def plant(
    ground: Ground,
    prior: Prior,
    heads: int,
    generator: np.random.Generator,
    *,
    among: Bool[np.ndarray, "layer head"] | None = None,
    first: Sequence[tuple[int, int]] = (),
    min_effect: float = 0.0,
) -> Planting:
    """v = size·√d_head·u (times rms(z) for an offset), u uniform on the unit sphere, on ``heads`` random heads.

    A head is drawn by the prior's layers, then its status, sizes and directions; if one of its gates alone is worth
    less than ``min_effect`` the whole draw is dropped and made again, so that what is planted is what is worth enough.

    Args:
        ground: the model and rows.
        prior: what is drawn.
        heads: how many heads; 0 plants nothing.
        generator: what it is drawn with.
        among: heads that may be planted; None is all.
        first: plant these heads before any that are drawn.
        min_effect: KL(base with the gate alone ‖ base) that each planted gate has at least, in nats per answer token.

    Raises:
        ValueError: more heads than may be planted; a prior of another number of layers; or ``TRIES`` draws in a row
            that were worth too little.
    """
    left = _candidates(ground.shape, prior, heads, among)
    teacher = _empty(ground.shape)
    gates: list[PlantedGate] = []
    rejected = 0
    wanted = list(first[:heads])
    for _ in range(heads):
        for _ in range(TRIES):
            unit = wanted[0] if wanted else _draw_head(left, prior, generator)
            vectors = _draw_vectors(ground, prior, unit, generator)
            found = [_measured(ground, unit, operation, vector) for operation, vector in vectors.items()]
            if all(gate.effect >= min_effect for gate in found):
                break
            rejected += 1
        else:
            raise ValueError(
                f"min_effect: {TRIES} draws in a row had a gate worth less than {min_effect} nat per answer token: "
                "ask for less, or plant larger edits"
            )
        wanted = wanted[1:]
        left[unit] = False
        gates += [replace(gate, hosts=ground.hosts(*unit, gate.operation, vectors[gate.operation])) for gate in found]
        _place(teacher, unit, vectors)
    return Planting(teacher, tuple(gates), ground.effect(teacher) if gates else 0.0, rejected)


def _candidates(
    shape: HeadShape, prior: Prior, heads: int, among: Bool[np.ndarray, "layer head"] | None
) -> Bool[np.ndarray, "layer head"]:
    if len(prior.layers) != shape.layers:
        raise ValueError(f"prior.layers has {len(prior.layers)} weights, the model {shape.layers} layers")
    left = np.ones((shape.layers, shape.heads), bool) if among is None else np.array(among, dtype=bool)
    left &= np.asarray(prior.layers)[:, None] > 0
    if not 0 <= heads <= left.sum():
        raise ValueError(f"heads: {heads} were to be planted, from 0 to {left.sum()} can be")
    return left


def _empty(shape: HeadShape) -> JoLA:
    teacher = JoLA(shape, gates="none").requires_grad_(False)
    teacher.initialised = True
    return teacher


def _draw_head(left: Bool[np.ndarray, "layer head"], prior: Prior, generator: np.random.Generator) -> tuple[int, int]:
    weights = (left * np.asarray(prior.layers)[:, None]).reshape(-1)
    layer, head = divmod(int(generator.choice(weights.size, p=weights / weights.sum())), left.shape[1])
    return layer, head


def _draw_vectors(
    ground: Ground, prior: Prior, unit: tuple[int, int], generator: np.random.Generator
) -> dict[Operation, Float[Tensor, " d_head"]]:
    status = str(generator.choice(prior.statuses))
    vectors: dict[Operation, Tensor] = {}
    for operation in prior.operations:
        if status in (operation, "both"):
            direction = torch.from_numpy(generator.standard_normal(ground.shape.d_head)).float()
            length = float(generator.choice(prior.sizes[operation])) * math.sqrt(ground.shape.d_head)
            unit_of = float(ground.rms[unit]) if operation == "additive" else 1.0
            vectors[operation] = direction / direction.norm() * length * unit_of
    return vectors


def _measured(ground: Ground, unit: tuple[int, int], operation: Operation, vector: Tensor) -> PlantedGate:
    alone = _empty(ground.shape)
    _place(alone, unit, {operation: vector})
    size = float(vector.norm()) / math.sqrt(len(vector))
    return PlantedGate(
        *unit,
        operation,
        size=size / float(ground.rms[unit]) if operation == "additive" else size,
        effect=ground.effect(alone),
    )


@torch.no_grad()
def _place(edit: JoLA, unit: tuple[int, int], vectors: Mapping[Operation, Tensor]) -> None:
    for operation, vector in vectors.items():
        target = edit.site("heads").vectors[operation]
        target[unit] = vector.to(target)
