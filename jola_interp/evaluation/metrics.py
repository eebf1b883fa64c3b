"""Scores with intervals: accuracy and exact match (Wilson), BLEU, ROUGE-L and means (bootstrap)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jola_interp.tasks.base import Example, Task

LEVEL = 0.95
"""Coverage of every interval."""
RESAMPLES = 1000
"""Bootstrap resamples of the rows."""


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval over test rows."""

    value: float
    low: float
    high: float
    n: int
    method: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def proportion(hits: Sequence[bool]) -> Score:
    """100 · k/n with the Wilson interval."""
    from scipy.stats import binomtest

    n, k = len(hits), int(sum(hits))
    interval = binomtest(k, n).proportion_ci(LEVEL, method="wilson")
    return Score(100 * k / n, 100 * float(interval.low), 100 * float(interval.high), n, "Wilson")


def mean(values: Sequence[float] | np.ndarray, seed: int = 0) -> Score:
    """The mean with a percentile bootstrap interval over rows."""
    given = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(len(given), size=(RESAMPLES, len(given)))
    low, high = np.quantile(given[picks].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(float(given.mean()), float(low), float(high), len(given), "bootstrap")


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Corpus BLEU with all references (sacrebleu's defaults) and its bootstrap interval."""
    from sacrebleu.metrics import BLEU

    streams: Any = _streams(references)  # None where a row has fewer references, which sacrebleu takes
    found = BLEU().corpus_score(list(predictions), streams, n_bootstrap=RESAMPLES)
    half = found._ci  # sacrebleu: half the width of the 95 % interval around the bootstrap mean
    centre = found._mean
    return Score(found.score, max(0.0, centre - half), centre + half, len(predictions), "bootstrap")


def bleu_signature() -> str:
    """sacrebleu's signature of :func:`bleu`."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """100 · mean over rows of the best ROUGE-L F1 over a row's references (rouge-score, with stemming)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    best = [
        max(scorer.score(reference, prediction)["rougeL"].fmeasure for reference in row)
        for prediction, row in zip(predictions, references, strict=True)
    ]
    return mean(100 * np.asarray(best))


def read_choice(text: str, task: Task, example: Example) -> str | None:
    """The option that a written answer names: the first match of the task's (or the row's) pattern; None if none."""
    pattern = task.pattern_of(example)
    found = re.search(pattern, text) if pattern else None
    if found is None:
        return None
    return found.group(1) if found.re.groups else found.group(0)


def score_texts(task: Task, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, Score]:
    """The task's metric, and what goes with it, of written answers."""
    if task.kind == "choice":
        read = [read_choice(text, task, row) for text, row in zip(predictions, examples, strict=True)]
        hits = [found == row.answer for found, row in zip(read, examples, strict=True)]
        return {"accuracy": proportion(hits), "unparsed": proportion([found is None for found in read])}
    references = [row.references or (row.answer,) for row in examples]
    exact = [text in row for text, row in zip(predictions, references, strict=True)]
    return {
        "bleu": bleu(predictions, references),
        "rouge_l": rouge_l(predictions, references),
        "exact_match": proportion(exact),
    }


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """sacrebleu wants the first references of all rows, then the second ones, …; None where a row has fewer."""
    width = max(len(row) for row in references)
    return [[row[i] if i < len(row) else None for row in references] for i in range(width)]
