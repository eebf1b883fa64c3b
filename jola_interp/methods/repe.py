"""RePE: read a direction per layer off right and wrong answers, then choose on validation where and how far to push."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jola_interp import _files
from jola_interp._log import logger
from jola_interp.backends import attach
from jola_interp.batching import Encoded, batches_of, collate, encode_examples, pad_id
from jola_interp.edits.base import Context, HeadShape, Site
from jola_interp.edits.identity import Identity
from jola_interp.edits.reft import chosen_layers
from jola_interp.edits.repe import Steering, reading_vectors
from jola_interp.evaluation.likelihood import negative_log_likelihoods
from jola_interp.methods.setup import Setup
from jola_interp.methods.table import Method
from jola_interp.models import Model
from jola_interp.runs import STAGES
from jola_interp.tasks import Example, Task

CANDIDATES = 8
"""Single layers that are tried, spread evenly over the depth."""
STRENGTHS = (0.05, 0.1, 0.2, 0.4)
RECORD = "repe.json"
"""In the Run's ``stages``: what was tried, its validation cross-entropy, and what was chosen."""
_PAIRS, _WRONG, _VALIDATION = range(3)  # streams of random numbers


@dataclass(frozen=True)
class Trial:
    """One setting of the control and what it came to.

    Attributes:
        layers: controlled together, each by c_l = strength · mean ‖h_l‖ / number of them.
        strength: the sum of pushes, in mean residual norms.
        ce: validation cross-entropy per answer token, in nats.
    """

    layers: tuple[int, ...]
    strength: float
    ce: float


def steering(model: Model, **options: Any) -> Steering:
    """The control before it knows its directions: the identity.

    Raises:
        ValueError: an option outside its range.
    """
    check_options(model.head_shape, **options)
    return Steering(model.head_shape)


def prepare(
    setup: Setup, *, pairs: int, layers: Sequence[int] | None, strengths: Sequence[float], rows: int
) -> Steering:
    """h' = h + c_l·v_l: v_l by :func:`reading_vectors` over contrasts of training rows, l and c by validation rows.

    Every candidate (:func:`candidates`) is tried with every strength on the same validation rows, and the lowest
    cross-entropy wins, also where the model without an edit has a lower one: a control that may decline is zero-shot by
    another name. Strengths are positive unless told otherwise: the sign is the labels', and a push towards wrong
    answers would not be RePE. The Run keeps v of all layers and c as its edit, and the trials in ``stages/repe.json``.

    Args:
        setup: the fitting.
        pairs: contrasts at most; each is a training row with its own answer and with a wrong one.
        layers: control these, together; None tries :func:`candidates`.
        strengths: how far to push in all, in units of the mean residual norm of the controlled layer.
        rows: validation rows at most.

    Raises:
        ValueError: an option outside its range, or training rows that all have the same answer.
    """
    shape = setup.model.head_shape
    check_options(shape, pairs=pairs, layers=layers, strengths=strengths, rows=rows)
    right, wrong = contrasts(setup, pairs)
    last, norms = read(setup, [*encoded(setup, right), *encoded(setup, wrong)])
    vectors = reading_vectors(last[: len(right)] - last[len(right) :])
    chosen = np.sort(setup.generator(_VALIDATION).permutation(len(setup.task.validation))[:rows])
    validation = encoded(setup, [setup.task.validation[i] for i in chosen], eos=setup.settings.eos)
    base = cross_entropy(setup, Steering(shape), validation)
    trials = []
    for together in candidates(shape.layers) if layers is None else [tuple(chosen_layers(shape, layers))]:
        for strength in strengths:
            edit = Steering(shape).steer(vectors, control(norms, together, strength))
            trials.append(Trial(together, float(strength), cross_entropy(setup, edit, validation)))
    best = min(trials, key=lambda trial: trial.ce)
    _write_record(setup, base, trials, best, norms)
    return Steering(shape).steer(vectors, control(norms, best.layers, best.strength))


def contrasts(setup: Setup, pairs: int) -> tuple[list[Example], list[Example]]:
    """Training rows with their own answers, and the same rows with wrong ones (:func:`wrong_answer`)."""
    task = setup.task
    chosen = np.sort(setup.generator(_PAIRS).permutation(len(task.train))[:pairs])
    right = [task.train[i] for i in chosen]
    generator = setup.generator(_WRONG)
    return right, [dataclasses.replace(row, answer=wrong_answer(task, row, generator)) for row in right]


def wrong_answer(task: Task, row: Example, generator: np.random.Generator) -> str:
    """Of a choice another option, of a text the answer to another training row that does not count as right here.

    Raises:
        ValueError: there is none.
    """
    if task.kind == "choice":
        others = [option for option in task.options_of(row) if option != row.answer]
        if not others:
            raise ValueError(f"task {task.name!r}: a training row has no option but the right one, {row.answer!r}")
        return others[generator.integers(len(others))]
    accepted = {row.answer, *row.references}
    start = int(generator.integers(len(task.train)))
    for other in (*task.train[start:], *task.train[:start]):
        if other.answer not in accepted:
            return other.answer
    raise ValueError(f"task {task.name!r}: no training row has an answer that would be wrong for {row.instruction!r}")


def encoded(setup: Setup, rows: Sequence[Example], eos: bool = False) -> list[Encoded]:
    """Rows as tokens, as training encodes them; without EOS the last token is the answer's own."""
    settings, task = setup.settings, setup.task
    return encode_examples(
        rows,
        setup.model.tokenizer,  # type: ignore[arg-type]  # `fit` has seen to it
        wrapper=settings.wrapper,
        max_length=settings.max_length,
        eos=eos,
        template=task.template if settings.answers == "worded" else "{answer}",
    )


class _Recorder(Identity):
    """The identity, which keeps the residual stream at the last token, and its mean norm elsewhere."""

    def __init__(self, shape: HeadShape, rows: int):
        super().__init__(shape)
        self.last = torch.zeros(rows, shape.layers, shape.d_model)
        self.norms = torch.zeros(shape.layers, dtype=torch.float64)
        self.counted = 0
        self.rows: list[int] = []

    def points(self) -> list[tuple[int, Site]]:
        return [(layer, "residual") for layer in range(self.shape.layers)]

    def forward(self, activation: Tensor, layer: int, site: Site, context: Context) -> Tensor:  # noqa: ARG002
        assert context.attention_mask is not None  # `read` passes one
        real = context.attention_mask.to(activation.device)
        tokens = activation[(real.cumsum(1) > 1) & (real == 1)].float()  # [token, d_model], without each row's first
        self.last[self.rows, layer] = activation[:, -1].float().cpu()
        self.norms[layer] += tokens.norm(dim=-1).double().sum().cpu()
        self.counted += len(tokens) if layer == 0 else 0
        return activation


@torch.no_grad()
def read(setup: Setup, rows: Sequence[Encoded]) -> tuple[Float[Tensor, "row layer d_model"], Float[Tensor, " layer"]]:
    """(the residual stream at each row's last token, its mean norm over all tokens but each row's first), per layer.

    The first token is left out: on many models its norm is a hundred times that of any other.
    """
    model = setup.model
    recorder = _Recorder(model.head_shape, len(rows))
    pad = pad_id(model.tokenizer) if model.tokenizer is not None else 0
    with attach(recorder, model, setup.backend):
        for places in batches_of([len(row.ids) for row in rows], setup.settings.evaluation_batch_size):
            recorder.rows = places
            batch = collate([rows[i] for i in places], pad, model.device)
            model.logits(batch.input_ids, batch.attention_mask, 1, batch.prompt_mask)
    return recorder.last, (recorder.norms / max(1, recorder.counted)).float()


def candidates(n_layers: int) -> list[tuple[int, ...]]:
    """Layers to control: up to ``CANDIDATES`` single ones from the first to the last, and the middle half together."""
    spread = np.linspace(0, n_layers - 1, min(CANDIDATES, n_layers)).round().astype(int)
    band = tuple(range(n_layers // 4, n_layers - n_layers // 4))
    return list(dict.fromkeys([*((int(layer),) for layer in spread), band]))


def control(norms: Float[Tensor, " layer"], layers: Sequence[int], strength: float) -> Float[Tensor, " layer"]:
    """c_l = strength · mean ‖h_l‖ / number of layers, on ``layers``; 0 elsewhere."""
    chosen = torch.zeros_like(norms)
    chosen[list(layers)] = norms[list(layers)] * strength / len(layers)
    return chosen


def cross_entropy(setup: Setup, edit: Steering, rows: Sequence[Encoded]) -> float:
    """Cross-entropy per answer token under an edit, in nats.

    Raises:
        ValueError: it is not finite.
    """
    with attach(edit.to(setup.model.device), setup.model, setup.backend):
        totals, counts = negative_log_likelihoods(setup.model, rows, setup.settings.evaluation_batch_size)
    found = float(totals.sum() / counts.sum())
    if not math.isfinite(found):
        strengths = edit.strength[edit.strength != 0].tolist()
        raise ValueError(f"strengths: the validation cross-entropy under pushes of length {strengths} is {found}")
    return found


def check_options(
    shape: HeadShape, *, pairs: object, layers: Sequence[int] | None, strengths: Sequence[float], rows: object
) -> None:
    """Refuse options that cannot be used. Raises ValueError."""
    for name, value in (("pairs", pairs), ("rows", rows)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be an integer ≥ 1; got {value!r}")
    chosen_layers(shape, layers)
    usable = isinstance(strengths, Sequence) and not isinstance(strengths, str) and len(strengths) > 0
    if not usable or not all(type(value) in (int, float) and math.isfinite(value) for value in strengths):
        raise ValueError(f"strengths must be some finite numbers; got {strengths!r}")


def _write_record(setup: Setup, base: float, trials: Sequence[Trial], best: Trial, norms: Tensor) -> None:
    """``stages/repe.json``."""
    if best.ce > base:
        message = "repe: every control tried is worse on validation (at best %.4f) than none (%.4f)"
        logger.warning(message, best.ce, base)
    folder = setup.folder / STAGES
    folder.mkdir(parents=True, exist_ok=True)
    tried = [dataclasses.asdict(trial) for trial in trials]
    record = {"chosen": dataclasses.asdict(best), "base_ce": base, "mean_norm": norms.tolist(), "trials": tried}
    _files.write_json(folder / RECORD, record)


REPE = (
    Method(
        "repe",
        "h' = h + c_l·v_l, v_l the first principal component of right − wrong at the last token",
        "blocks.L.hook_resid_post",
        "RePE (arXiv 2310.01405) §3.1, §3.2",
        steering,
        prepare,
        options={"pairs": 128, "layers": None, "strengths": STRENGTHS, "rows": 64},
        note="Nothing trains: directions are read off training rows, layers and strength chosen on validation rows.",
    ),
)
