"""Nulls that a selection has to beat: labels that mean nothing, a base that knows nothing, other seeds and rows, other
directions of the same size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from jola_interp.evaluation.side_effects import random_control
from jola_interp.evidence.case import Case
from jola_interp.evidence.endpoint import Paired, paired
from jola_interp.evidence.overlap import Overlap, overlap
from jola_interp.models import Model
from jola_interp.tasks import Example, Task, load_task, task_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from jola_interp.runs import Run

DIRECTIONS = 5
"""Random edits of the same norms."""
PAIRS = 4
"""Other (seed, rows) pairs by default; 8 for a headline: with 3 no sign test reaches p < .25."""
FIRST_SEED = 1000


@dataclass(frozen=True)
class Retrained:
    """One training under a null.

    Attributes:
        name: which.
        gain: NLL(base) − NLL(edited) of the test rows.
        selected: how many heads it selected.
        overlap: of its selection with the Run's.
        decided: share of its gates that decided.
    """

    name: str
    gain: Paired
    selected: int
    overlap: Overlap
    decided: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {"name": self.name, "gain": self.gain.to_dict(), "selected": self.selected}
        return found | {"overlap": self.overlap.to_dict(), "decided": self.decided}


@dataclass(frozen=True)
class Replicates:
    """The Run trained again with other seeds on other rows.

    Attributes:
        runs: one each.
        excess: Jaccard − chance over the replicates, with its interval; conditional on the Run that they are held
            against.
        sign_p: two-sided sign test of "as often below chance as above".
        resampled: whether rows were resampled from the Run's own for want of others.
        frequency: [layer][head] in how many of the replicates a head was selected.
    """

    runs: tuple[Retrained, ...]
    excess: Paired
    sign_p: float
    resampled: bool
    frequency: tuple[tuple[int, ...], ...]

    def sentence(self) -> str:
        """The answer in words."""
        mean = np.mean([found.overlap.jaccard for found in self.runs])
        chance = np.mean([found.overlap.chance for found in self.runs])
        rows = "resampled rows" if self.resampled else "other rows"
        return (
            f"{len(self.runs)} trainings with other seeds and {rows} share {mean:.2f} of their heads with this Run "
            f"(Jaccard; chance {chance:.2f}, excess {self.excess}, sign test p = {self.sign_p:.2f}; an excess of "
            f"{self.excess.mde:.2f} would have been detected)."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "runs": [found.to_dict() for found in self.runs],
            "excess": self.excess.to_dict(),
            "sign_p": self.sign_p,
            "resampled": self.resampled,
            "frequency": [list(row) for row in self.frequency],
            "sentence": self.sentence(),
        }


def norm_matched(case: Case, directions: int = DIRECTIONS, seed: int = 0) -> dict[str, Any]:
    """Gain of the edit beside that of edits whose vectors have the same norms and random directions.

    p = (1 + #directions that gain at least as much)/(1 + #directions).
    """
    if directions < 1:
        raise ValueError(f"directions must be 1 or more, got {directions}")
    own = paired(case.gain)
    random = []
    for i in range(directions):
        edit = random_control(case.run.edit, seed + i)
        random.append(float((case.base.nll - case.endpoint.losses(edit).nll).mean()))
    return {
        "gain": own.to_dict(),
        "random": random,
        "p": (1 + sum(value >= own.value for value in random)) / (1 + directions),
    }


def label_shuffle(case: Case, seed: int = FIRST_SEED) -> Retrained:
    """Train on the same prompts with answers that mean nothing: does it choose the same heads?"""
    task = with_shuffled_labels(case.small_task, seed)
    return summarise(case, "label_shuffle", case.retrain(f"label-shuffle-{seed}", task=task))


def with_shuffled_labels(task: Task, seed: int) -> Task:
    """The task with training and validation answers that mean nothing; test rows keep theirs."""
    train, validation = (_shuffled(task, rows, seed) for rows in (task.train, task.validation))
    return dataclasses.replace(task, train=train, validation=validation)


def random_base(case: Case, seed: int = FIRST_SEED) -> Retrained:
    """Train on a model of the same architecture with random weights: what does it select where nothing was learnt?"""
    model = random_weights(case.model, seed)
    run = case.retrain(f"random-base-{seed}", model=model)
    endpoint = case.endpoint_on(model)
    gain = paired(endpoint.losses().nll - endpoint.losses(run.edit.restricted()).nll)
    return dataclasses.replace(described(case, "random_base", run), gain=gain)


def replicates(case: Case, pairs: int = PAIRS, draws: Sequence[Task] | None = None) -> Replicates:
    """Train again with other (seed, rows) pairs.

    Args:
        case: whose Run.
        pairs: how many.
        draws: other draws of the same task, one a pair; None loads them where the task is built in, and else resamples
            the Run's training rows. Rows that the Run is tested on are left out.

    Raises:
        ValueError: fewer than two pairs, or fewer draws than pairs.
    """
    if pairs < 2:
        raise ValueError(f"pairs must be 2 or more, got {pairs}")
    if draws is not None and len(draws) < pairs:
        raise ValueError(f"draws: {len(draws)} for {pairs} pairs")
    resampled = draws is None and not _is_builtin(case.task)
    runs = []
    for i in range(pairs):
        seed = FIRST_SEED + i
        drawn = draws[i] if draws is not None else _drawn(case.task, seed)
        task = dataclasses.replace(case.small_task, train=_without_test(drawn.train, case.task))
        runs.append(case.retrain(f"replicate-{seed}", task=task, seed=seed))
    found = [summarise(case, f"seed {FIRST_SEED + i}", run) for i, run in enumerate(runs)]
    excess = np.array([one.overlap.jaccard - one.overlap.chance for one in found])
    counts = np.zeros(case.editable.shape, dtype=int)
    for run in runs:
        for unit in run.selection(case.rule).units:
            counts[unit] += 1
    return Replicates(
        tuple(found), paired(excess), sign_test(excess), resampled, tuple(tuple(map(int, row)) for row in counts)
    )


def summarise(case: Case, name: str, run: Run) -> Retrained:
    """A training on the case's model: its gain on the test rows, and its selection against the Run's."""
    return dataclasses.replace(described(case, name, run), gain=paired(case.base.nll - case.score(run).nll))


def sign_test(values: Sequence[float] | np.ndarray) -> float:
    """p of "positive and negative are equally likely", two-sided; zeros say nothing."""
    from scipy.stats import binomtest

    above, below = int((np.asarray(values) > 0).sum()), int((np.asarray(values) < 0).sum())
    return float(binomtest(above, above + below, 0.5).pvalue) if above + below else 1.0


def random_weights(model: Model, seed: int) -> Model:
    """The architecture of ``model``, freshly initialised by its own rules; same dtype, device and tokenizer."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(model.hf.config)
    return Model(in_dtype(hf, model).eval(), model.tokenizer, name=f"{model.name}-random")


def in_dtype(hf: PreTrainedModel, like: Model) -> PreTrainedModel:
    """``hf`` on the device of another model, its parameters in that one's dtype. Buffers stay: rotary frequencies in
    bfloat16 would be another model's."""
    torch.nn.Module.to(hf, like.device)
    for parameter in hf.parameters():
        parameter.data = parameter.data.to(like.dtype)
    hf.config.dtype = like.dtype
    return hf


def described(case: Case, name: str, run: Run) -> Retrained:
    """A training's selection against the Run's; its gain is still to be filled in."""
    chosen = run.selection(case.rule).units
    stamp = run.convergence
    nothing = Paired(0.0, 0.0, 0.0, 1.0, 0, 0.0)
    found = overlap(case.selected, chosen, case.editable)
    return Retrained(name, nothing, len(chosen), found, stamp.decided_share if stamp else float("nan"))


def _is_builtin(task: Task) -> bool:
    return task.name in task_names() and "/" not in task.name


def _drawn(task: Task, seed: int) -> Task:
    """Other training rows of a built-in task; of any other, its own resampled with replacement."""
    if _is_builtin(task):
        return load_task(task.name, n_train=len(task.train), n_validation=2, n_test=2, seed=seed)
    places = np.random.default_rng(seed).integers(0, len(task.train), len(task.train))
    rows = tuple(dataclasses.replace(task.train[i], id=f"{task.train[i].id}.{n}") for n, i in enumerate(places))
    return dataclasses.replace(task, train=rows)


def _without_test(rows: Sequence[Example], task: Task) -> tuple[Example, ...]:
    tested = {row.instruction for row in task.test}
    return tuple(row for row in rows if row.instruction not in tested)


def _shuffled(task: Task, rows: Sequence[Example], seed: int) -> tuple[Example, ...]:
    """A choice gets one of its row's options at random; a text the answer of another row."""
    generator = np.random.default_rng(seed)
    if task.kind == "choice":
        return tuple(dataclasses.replace(row, answer=str(generator.choice(list(task.options_of(row))))) for row in rows)
    shift = int(generator.integers(1, max(2, len(rows))))
    order = generator.permutation(len(rows))
    partner = {int(order[i]): int(order[(i + shift) % len(rows)]) for i in range(len(rows))}
    return tuple(
        dataclasses.replace(row, answer=rows[partner[i]].answer, references=rows[partner[i]].references)
        for i, row in enumerate(rows)
    )
