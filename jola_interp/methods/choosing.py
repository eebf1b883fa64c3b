"""K heads chosen by other means than gates of their own, and an edit without gates trained anew on them.

    random      any K
    norm        largest ‖A‖₂ after LoFiT's first step                    z' = (1 + A) ⊙ z, CE + λ₁‖A‖₁
    effective   largest (rms(a) + rms(m ⊙ z)) / rms(z) after training    z' = (1 + m) ⊙ z + a on all heads
    gradient    largest |Σ_tokens z · ∂CE/∂z|, without any training
    DSP         the top K of differentiable subset pruning               z' = (1 + g·m) ⊙ z + g·a, Σ g = K
    CHG         largest gate of causal head gating, closing (G⁻)         z' = g·z

Each is ``(setup, k, …)`` to K (layer, head) pairs, the best first. Trainings are stages of the Run that they are for.
Equal scores go by layer and head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from jola_interp.activations import ROWS, Meter
from jola_interp.backends import attach
from jola_interp.batching import Batch, Encoded, batches_of, collate, encode_examples, pad_id
from jola_interp.edits.base import Context, Edit, HeadShape, Site
from jola_interp.edits.head_gates import HeadGates
from jola_interp.edits.jola import JoLA, Operations
from jola_interp.edits.lofit import HeadScales
from jola_interp.edits.subset import Subset, check_k
from jola_interp.methods import causal
from jola_interp.methods.jola import HEADS, UNGATED
from jola_interp.methods.setup import Setup
from jola_interp.methods.table import Method
from jola_interp.models import Model
from jola_interp.objective import cross_entropy

Heads = list[tuple[int, int]]
Choose = Callable[..., Heads]
"""(setup, k, **options) to K heads as (layer, head) pairs."""

K = 32
"""How many heads, unless told: the fewest that LoFiT was tried with."""
L1 = 1e-3
"""λ₁ of LoFiT's first step, out of its authors' 5e-4 to 5e-3."""
SCALES: dict[str, Any] = {
    "lr": 5e-3,
    "lr_ratio": 1.0,
    "penalty_form": "mean",
    "penalty_schedule": "constant",
    "penalty_warmup": 0.0,
    "multiplicative_weight": 1.0,
    "stop_on": "ce",
}
"""Training fields of LoFiT's first step."""
SUBSET: dict[str, Any] = {**UNGATED, "gate_lr": 0.5, "gate_share": 0.68}
"""Training fields of differentiable subset pruning: its authors' learning rate of w; w trains as long as there the
temperature falls (25,000 of 36,800 steps), then the K heads stand."""


# -- how heads are chosen ----------------------------------------------------------------------------------------------


def random_heads(setup: Setup, k: int = K, draw: int = 0, like: Sequence[int] | None = None) -> Heads:
    """``k`` heads at random, by layer and head: what every other choice has to beat. No training.

    Args:
        setup: of its settings, the seed; nothing else enters.
        k: how many.
        draw: which of the draws that a seed has.
        like: how many to take in each layer, for draws that differ from a choice in the heads alone.

    Raises:
        ValueError: ``k`` or ``draw`` outside its range, or a ``like`` that does not fit the model or add up to ``k``.
    """
    shape = setup.model.head_shape
    check_k(k, shape.layers * shape.heads)
    if isinstance(draw, bool) or not isinstance(draw, int) or draw < 0:
        raise ValueError(f"draw must be an integer ≥ 0; got {draw!r}")
    generator = setup.generator(draw)
    if like is None:
        places = generator.choice(shape.layers * shape.heads, size=k, replace=False)
        return sorted(divmod(int(place), shape.heads) for place in places)
    _check_counts(like, k, shape)
    drawn = [generator.choice(shape.heads, size=count, replace=False) for count in like]
    return sorted((layer, int(head)) for layer, heads in enumerate(drawn) for head in heads)


def norm_heads(setup: Setup, k: int = K, l1: float = L1) -> Heads:
    """The ``k`` heads with the largest ‖A‖₂ after LoFiT's first step. One training, ``scales``.

    Args:
        setup: what to train on.
        k: how many.
        l1: λ₁, the weight of ‖A‖₁.

    Raises:
        ValueError: ``k`` or ``l1`` outside its range.

    Source: Yin, Ye, Durrett 2024 (arXiv 2406.01563), §3.
    """
    shape = setup.model.head_shape
    check_k(k, shape.layers * shape.heads)
    if isinstance(l1, bool) or not isinstance(l1, int | float) or not 0 <= l1 < float("inf"):
        raise ValueError(f"l1 must be a finite number ≥ 0; got {l1!r}")
    run = setup.train(HeadScales(shape), "scales", **SCALES, penalty=l1)
    return top(cast(HeadScales, run.edit).sizes(), k)


def effective_heads(setup: Setup, k: int = K) -> Heads:
    """The ``k`` heads at which an edit of all heads, trained without gates, writes most. One training, ``all-heads``.

    Raises:
        ValueError: ``k`` outside its range.
    """
    shape = setup.model.head_shape
    check_k(k, shape.layers * shape.heads)
    return top(effective_sizes(setup, setup.train(JoLA(shape, gates="none"), "all-heads").edit), k)


def gradient_heads(setup: Setup, k: int = K) -> Heads:
    """The ``k`` heads with the largest |Σ z · ∂CE/∂z|. No training: each training row is read once, and back.

    Raises:
        ValueError: ``k`` outside its range.
    """
    shape = setup.model.head_shape
    check_k(k, shape.layers * shape.heads)
    return top(sensitivities(setup), k)


def dsp_heads(setup: Setup, k: int = K) -> Heads:
    """The ``k`` heads that differentiable subset pruning ends with (:class:`Subset`). One training, ``subset``.

    Raises:
        ValueError: ``k`` outside its range.
    """
    edit = Subset(setup.model.head_shape, k=k)
    return cast(Subset, setup.train(edit, "subset", **SUBSET).edit).chosen()


def chg_heads(setup: Setup, k: int = K) -> Heads:
    """The ``k`` heads that causal head gating leaves most open under the pressure to close (G⁻, by its θ, which still
    tells apart what rounds to 1). Two trainings, ``gates`` and ``closing``.

    Raises:
        ValueError: ``k`` outside its range.
    """
    shape = setup.model.head_shape
    check_k(k, shape.layers * shape.heads)
    return top(causal.closed(setup).theta.detach(), k)


# -- what they are chosen by -------------------------------------------------------------------------------------------


def top(scores: Float[Tensor, "layer head"], k: int) -> Heads:
    """The ``k`` largest, the largest first; NaN is the smallest of all."""
    order = scores.nan_to_num(nan=-torch.inf).flatten().argsort(descending=True, stable=True)[:k]
    return [divmod(int(place), scores.shape[1]) for place in order.tolist()]


class Moved(Meter):
    """The identity, which adds up (m ⊙ z)² where :class:`Meter` adds up z²; m are its own vectors."""

    def forward(self, activation: Tensor, layer: int, site: Site, context: Context) -> Tensor:
        scale = self.site(site).vectors["multiplicative"][layer]
        super().forward(activation * scale.to(activation), layer, site, context)
        return activation


@torch.no_grad()
def effective_sizes(setup: Setup, edit: JoLA) -> Float[Tensor, "layer head"]:
    """(rms(a) + rms(m ⊙ z)) / rms(z) of every head: by how much of its own size the edit moves it.

    rms is over components and, for z, over the tokens of training rows (``ROWS`` at most) in the base model but the
    first of each. NaN where z is 0 throughout.

    Args:
        setup: whose training rows to read.
        edit: without gates, of both operations, on heads.
    """
    vectors = edit.site("heads").vectors
    plain, moved = Meter(edit.shape, gates="none").reset(), Moved(edit.shape, gates="none").reset()
    moved.site("heads").vectors["multiplicative"].copy_(vectors["multiplicative"])
    with attach([plain, moved], setup.model, setup.backend):
        for batch in _batches(setup, _rows(setup)[:ROWS]):
            setup.model.logits(batch.input_ids, batch.attention_mask, 1)
    z, scaled = ((meter.squares["heads"] / meter.counted["heads"][0]).sqrt() for meter in (plain, moved))
    found: Tensor = (vectors["additive"].double().square().mean(-1).sqrt() + scaled) / z
    return found


def sensitivities(setup: Setup) -> Float[Tensor, "layer head"]:
    """|Σ z · ∂CE/∂z| of every head, summed over the tokens of all training rows but the first of each.

    It is |∂CE/∂s| at s = 1 of z' = s·z: what turning the head up a little, everywhere, would change. Michel et al. 2019
    (arXiv 1905.10650) take the absolute value row by row; here it is of the whole sum, as an edit is the same for all
    rows.
    """
    probe = JoLA(setup.model.head_shape, gates="none", operations="multiply", scope="not_first")
    probe.to(setup.model.device)
    with attach(probe, setup.model, setup.backend), torch.enable_grad():
        for batch in _batches(setup, _rows(setup)):
            cross_entropy(setup.model, batch).backward()
    found = probe.site("heads").vectors["multiplicative"].grad  # Σ z ⊙ ∂CE/∂z, component by component
    assert found is not None
    return cast(Tensor, found.double().sum(-1).abs().cpu())


def _rows(setup: Setup) -> list[Encoded]:
    """The training rows as the edit will be trained on them."""
    settings, task = setup.settings, setup.task
    return encode_examples(
        task.train,
        cast(Any, setup.model.tokenizer),
        wrapper=settings.wrapper,
        max_length=settings.max_length,
        eos=settings.eos,
        template=task.template if settings.answers == "worded" else "{answer}",
    )


def _batches(setup: Setup, rows: Sequence[Encoded]) -> list[Batch]:
    pad = pad_id(cast(Any, setup.model.tokenizer))
    places = batches_of([len(row.ids) for row in rows], setup.settings.batch_size)
    return [collate([rows[i] for i in chosen], pad, setup.model.device) for chosen in places]


def _check_counts(like: Sequence[int], k: int, shape: HeadShape) -> None:
    counts = list(like)
    if len(counts) != shape.layers or not all(0 <= count <= shape.heads for count in counts) or sum(counts) != k:
        raise ValueError(
            f"like must be {shape.layers} numbers from 0 to {shape.heads}, one a layer, that add up to k = {k}; "
            f"got {counts}"
        )


# -- the methods -------------------------------------------------------------------------------------------------------


def on_heads(shape: HeadShape, heads: Heads, operations: Operations = "both") -> JoLA:
    """An edit without gates on these heads alone."""
    return JoLA(shape, gates="none", operations=operations, heads=heads)


def first_heads(model: Model, k: int = K, operations: Operations = "both", **_: Any) -> Edit:
    """:func:`on_heads` of the first ``k``: of the size that any choice has."""
    shape = model.head_shape
    check_k(k, shape.layers * shape.heads)
    return on_heads(shape, [divmod(place, shape.heads) for place in range(k)], operations)


def on_chosen(choose: Choose, setup: Setup, operations: Operations = "both", **options: Any) -> Edit:
    """:func:`on_heads` of what ``choose`` chooses."""
    return on_heads(setup.model.head_shape, choose(setup, **options), operations)


def chosen(name: str, source: str, choose: Choose, **options: Any) -> Method:
    """A method that trains both vectors anew, without gates, on K heads chosen before."""
    equation = "z' = (1 + m) ⊙ z + a on K heads"
    prepare, known = partial(on_chosen, choose), {"k": K, **options}
    return Method(name, equation, HEADS, source, first_heads, prepare, options=known, train=UNGATED)


def _subset(model: Model, k: int = K) -> Edit:
    return Subset(model.head_shape, k=k)


def _gates(model: Model) -> Edit:
    return HeadGates(model.head_shape, pressure="close")


CHOOSING = (
    chosen("random-heads", "JoLA (arXiv 2502.01179) Fig. 6: K heads at random", random_heads, draw=0, like=None),
    chosen("norm-heads", "K heads by ‖A‖₂ of step 1 of LoFiT (arXiv 2406.01563)", norm_heads),
    chosen("effective-heads", "K heads by effective size of an edit of all heads, without gates", effective_heads),
    chosen("gradient-heads", "K heads by |Σ z · ∂CE/∂z|, after Michel et al. (arXiv 1905.10650)", gradient_heads),
    chosen("dsp-heads", "K heads by differentiable subset pruning (arXiv 2108.04657)", dsp_heads),
    chosen("chg-heads", "K heads by G⁻ of causal head gating (arXiv 2505.13737)", chg_heads),
    Method(
        "dsp",
        "z' = (1 + g·m) ⊙ z + g·a, Σ g = K",
        HEADS,
        "Differentiable subset pruning (arXiv 2108.04657), joint",
        _subset,
        options={"k": K},
        train=SUBSET,
        fixed={"gate_share": SUBSET["gate_share"]},
    ),
    Method(
        "chg",
        "z' = g·z, g = σ(θ)",
        HEADS,
        "Causal head gating (arXiv 2505.13737), G⁻, §6.2",
        _gates,
        causal.closing,
        fixed=causal.recipe(),
    ),
)
