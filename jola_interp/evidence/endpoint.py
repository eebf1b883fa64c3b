"""The primary endpoint: per-row negative log-likelihood of the trained answers, paired by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jola_interp.backends import attach, require_unedited
from jola_interp.batching import (
    Encoded,
    answer_losses,
    batches_of,
    collate,
    encode_answer,
    encode_examples,
    pad_id,
)
from jola_interp.evaluation.likelihood import label_spans
from jola_interp.tasks import Example

if TYPE_CHECKING:
    from jola_interp.backends import BackendName
    from jola_interp.config import TrainConfig
    from jola_interp.edits.base import Edit
    from jola_interp.models import Model
    from jola_interp.tasks import Task


@dataclass(frozen=True)
class RowLosses:
    """What each row's answer costs.

    Attributes:
        nll: [row] −log p, the mean over the answer's tokens, in nats per token.
        label: [row] Σ −log p of the tokens that tell the right option from the others, in nats; None for texts.
    """

    nll: Float[np.ndarray, " row"]
    label: Float[np.ndarray, " row"] | None = None


@dataclass(frozen=True)
class Paired:
    """Mean of a difference over rows, with its 95 % interval (Student's t) and what could have been detected.

    Attributes:
        value, low, high: in nats.
        p: of "the mean is 0", two-sided.
        n: rows.
        mde: the smallest true mean that n rows would show (p < .05, two-sided) four times in five, given the spread
            that was found (by the noncentral t distribution).
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    mde: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired(differences: Float[np.ndarray, " row"]) -> Paired:
    """Mean of row-wise differences. Raises ValueError on fewer than two rows."""
    from scipy import stats

    if len(differences) < 2:
        raise ValueError(f"a paired comparison needs two rows or more, got {len(differences)}")
    n, mean = len(differences), float(np.mean(differences))
    error = float(np.std(differences, ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf(0.975, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Paired(mean, mean - half, mean + half, p, n, detectable(n) * error)


@cache
def detectable(n: int, power: float = 0.8) -> float:
    """The true mean, in standard errors, that a two-sided t test at .05 on n rows finds with ``power``."""
    from scipy import optimize, stats

    critical = stats.t.ppf(0.975, n - 1)
    return float(optimize.brentq(lambda mean: stats.nct.sf(critical, n - 1, mean) - power, 0.0, 500.0))


class Endpoint:
    """Fixed rows of a task on which edits are compared: one number a row.

    Args:
        model: without an edit when rows are scored.
        rows: which.
        task: what they are of.
        settings: how prompts and answers are encoded (as in training).
        backend: how to reach the activations.
    """

    def __init__(self, model: Model, task: Task, rows: Sequence[Example], settings: TrainConfig, backend: BackendName):
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer: load_model(model, tokenizer=...)")
        self.model, self.task, self.examples = model, task, tuple(rows)
        self.settings, self.backend = settings, backend
        self.rows = encode_rows(model, task, rows, settings)
        self.label_spans = _label_spans(model, task, rows, settings) if task.kind == "choice" else None

    @torch.no_grad()
    def losses(self, edit: Edit | None = None, rows: Sequence[Encoded] | None = None) -> RowLosses:
        """The rows' losses under an edit at inference; None is the base model.

        Args:
            edit: put on the model for these passes alone.
            rows: other encodings of the same rows (behind a prefix, say).
        """
        require_unedited(self.model, "an endpoint")
        if edit is None:
            return self._losses(rows or self.rows)
        ready = edit.to(self.model.device).requires_grad_(False)
        with attach(ready, self.model, self.backend) as attached:
            found = self._losses(rows or self.rows)
        attached.check_live()
        return found

    def _losses(self, rows: Sequence[Encoded]) -> RowLosses:
        nll, label = np.zeros(len(rows)), np.zeros(len(rows))
        size = self.settings.evaluation_batch_size
        for chosen in batches_of([len(row.ids) for row in rows], size):
            tokens = self._tokens([rows[i] for i in chosen])
            for i, values in zip(chosen, tokens, strict=True):
                nll[i] = values.mean()
                if self.label_spans is not None:
                    first, last = self.label_spans[i]
                    label[i] = values[first:last].sum()
        return RowLosses(nll, label if self.label_spans is not None else None)

    def _tokens(self, rows: Sequence[Encoded]) -> list[Float[np.ndarray, " token"]]:
        batch = collate(rows, pad_id(self.model.tokenizer), self.model.device)  # type: ignore[arg-type]
        logits = self.model.logits(batch.input_ids, batch.attention_mask, batch.keep, batch.prompt_mask)
        losses: Tensor = answer_losses(logits, batch.labels).double().cpu()
        return [losses[i, -row.n_answer :].numpy() for i, row in enumerate(rows)]


def encode_rows(model: Model, task: Task, rows: Sequence[Example], settings: TrainConfig) -> list[Encoded]:
    """Rows as training encodes them."""
    return encode_examples(
        rows,
        model.tokenizer,  # type: ignore[arg-type]
        wrapper=settings.wrapper,
        max_length=settings.max_length,
        eos=settings.eos,
        template=task.template if settings.answers == "worded" else "{answer}",
    )


def _label_spans(model: Model, task: Task, rows: Sequence[Example], settings: TrainConfig) -> list[tuple[int, int]]:
    """For each row the tokens of its answer that tell it from the other options."""
    spans = []
    for row in rows:
        names = task.options_of(row)
        texts = [task.worded(name, settings.answers) for name in names]
        options = [encode_answer(text, model.tokenizer, settings.eos) for text in texts]  # type: ignore[arg-type]
        spans.append(label_spans(options)[names.index(row.answer)])
    return spans
