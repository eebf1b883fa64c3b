"""Scores of the base and the edited model, side by side, with a guard that the edit was live."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from jola_interp import _files
from jola_interp.backends import BACKENDS, require_unedited
from jola_interp.batching import encode_examples
from jola_interp.evaluation import metrics
from jola_interp.evaluation.generation import generate_texts
from jola_interp.evaluation.likelihood import negative_log_likelihoods, option_likelihoods
from jola_interp.models import Model
from jola_interp.runs import Run
from jola_interp.tasks import Task, load_task
from jola_interp.tasks.base import Example


def evaluate(
    run: Run,
    task: str | Task,
    model: str | Model | None = None,
    *,
    rows: int | None = None,
    beams: int | None = None,
    max_new_tokens: int | None = None,
    save: bool = True,
) -> dict[str, Any]:
    """Score base and edited model on the test rows of a task; write ``scores.json`` and ``predictions.jsonl``.

    Args:
        run: whose edit to attach.
        task: whose test rows to use, a name or a Task; any task, also one that the Run was not trained on (then pass
            ``save=False``, or the Run's scores are of another task, which ``scores.json`` says).
        model: None is the Run's own.
        rows: only the first so many test rows.
        beams, max_new_tokens: None is what the Run's configuration says.
        save: write the two files.

    Returns:
        What ``scores.json`` holds: ``metric``, the protocol, and ``base`` and ``edited`` with, for each score, value,
        95 % interval, n and the interval's method. Percentages run from 0 to 100; nll is in nats per answer token.

    Raises:
        ValueError: a task without test rows.
        ValueError: an edit is attached to the model.
        EditNotLiveError: the edit did not act in every pass of the evaluation.
    """
    task = task if isinstance(task, Task) else load_task(task)
    target = run.model_or(model)
    require_unedited(target, "evaluate")
    if not target.booted:  # now, so that base and edited scores come from the same arithmetic
        BACKENDS[run.config["backend"]].ready(target)
    examples = task.test[:rows]
    if not examples:
        raise ValueError(f"task {task.name!r} has no test rows")
    train = run.config["train"]
    protocol = {
        "wrapper": train["wrapper"],
        "max_length": train["max_length"],
        "eos": train["eos"],
        "batch_size": train["evaluation_batch_size"],
        "beams": beams or train["beams"],
        "max_new_tokens": max_new_tokens or train["max_new_tokens"] or (16 if task.kind == "choice" else 64),
    }
    results = {}
    for name in ("base", "edited"):
        with nullcontext() if name == "base" else run.attach(target) as attached:
            results[name] = evaluate_model(target, task, examples, label=f"{name}: {task.name}", **protocol)
        if attached is not None:
            attached.check_live()
    scores = _report(task, examples, protocol, results)
    if save:
        _files.write_jsonl(run.path / "predictions.jsonl", _predictions(examples, results))
        _files.write_json(run.path / "scores.json", scores)
    return scores


def evaluate_model(
    model: Model,
    task: Task,
    examples: Sequence[Example],
    *,
    wrapper: str = "reference",
    max_length: int = 400,
    eos: bool = True,
    batch_size: int = 16,
    beams: int = 1,
    max_new_tokens: int = 64,
    label: str | None = None,
) -> dict[str, Any]:
    """Scores and per-row results of a model as it stands (with whatever edit is attached).

    Returns:
        ``scores`` name to :class:`~jola_interp.evaluation.metrics.Score`; ``texts``, ``nll`` (nats per token) and, for
        choices, ``chosen`` (by likelihood), one per row.
    """
    texts = generate_texts(
        model,
        [row.instruction for row in examples],
        wrapper=wrapper,
        max_length=max_length,
        max_new_tokens=max_new_tokens,
        beams=beams,
        batch_size=batch_size,
        progress=label,
    )
    scores = metrics.score_texts(task, examples, texts)
    text_options = {"wrapper": wrapper, "max_length": max_length, "eos": eos}
    encoded = encode_examples(examples, model.tokenizer, **text_options)  # type: ignore[arg-type]
    totals, tokens = negative_log_likelihoods(model, encoded, batch_size)
    result: dict[str, Any] = {"texts": texts, "nll": totals / tokens}
    scores["nll"] = metrics.mean(result["nll"])
    if task.kind == "choice":
        by_option = option_likelihoods(model, task, examples, batch_size=batch_size, **text_options)  # type: ignore[arg-type]
        result["chosen"] = [
            task.options_of(row)[int(np.argmax(values))] for row, values in zip(examples, by_option, strict=True)
        ]
        hits = [chosen == row.answer for chosen, row in zip(result["chosen"], examples, strict=True)]
        scores["likelihood_accuracy"] = metrics.proportion(hits)
    return result | {"scores": scores}


def _report(
    task: Task, examples: Sequence[Example], protocol: dict[str, Any], results: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "task": task.name,
        "task_fingerprint": task.fingerprint,
        "metric": task.metric,
        "n": len(examples),
        "protocol": protocol,
    }
    for name, result in results.items():
        report[name] = {key: score.to_dict() for key, score in result["scores"].items()}
    gain = results["base"]["nll"] - results["edited"]["nll"]
    report["nll_gain"] = metrics.mean(gain).to_dict()  # paired over rows
    if task.kind == "choice":
        counts = [sum(row.answer == other.answer for other in examples) for row in examples]
        chance = float(np.mean([1 / len(task.options_of(row)) for row in examples]))
        report["chance"], report["majority"] = 100 * chance, 100 * max(counts) / len(examples)
    elif task.metric == "bleu":
        report["signature"] = metrics.bleu_signature()
    return report


def _predictions(examples: Sequence[Example], results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for i, example in enumerate(examples):
        row: dict[str, Any] = {"id": example.id, "instruction": example.instruction, "answer": example.answer}
        if example.references:
            row["references"] = list(example.references)
        for name, result in results.items():
            row[name] = result["texts"][i]
            row[f"{name}_nll"] = float(result["nll"][i])
            if "chosen" in result:
                row[f"{name}_chosen"] = result["chosen"][i]
        rows.append(row)
    return rows
