"""The form of an answer: free text or a choice, and how it is found in what a model wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jola_interp.tasks.example import Example, TaskError, check_options, check_texts

KINDS = ("text", "choice")
# The metrics that an evaluation gives for each kind.
METRICS_OF = {"text": ("bleu", "rouge_l", "exact_match"), "choice": ("accuracy",)}
METRICS = ("bleu", "rouge_l", "accuracy", "exact_match")
MOST_LABELS = 20


def answer_pattern(answers: Sequence[str]) -> str:
    """A regular expression that finds the first of these answers in a text, the longest where several start.

    An answer counts only where no letter or digit touches it: "A" is not found in "Answer". Where all are
    single capital letters, the "I" of "I think" is passed over too.
    """
    words = "|".join(re.escape(answer) for answer in sorted(answers, key=lambda a: (-len(a), a)))
    letters = all(re.fullmatch("[A-Z]", answer) for answer in answers)
    pronoun = r"(?!I(?:\s+[a-z]|['’]))" if letters and "I" in answers else ""
    return rf"(?<!\w){pronoun}(?:{words})(?!\w)"


def answer_format(rows: Sequence[Example], given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(kind, options, pattern and metric as a dict, why this kind in a few words).

    What is given stands. The rest: rows with references are free text; rows that all bring options, or that
    have 2 to 20 distinct answers between them, are a choice; all else is free text. The options of a choice
    are the sorted distinct answers of the rows that bring none, and its pattern finds any of them. Metric:
    accuracy for a choice, bleu for free text.

    Raises:
        TaskError: an unknown key, a value of the wrong type or out of its range, or a metric of the other kind.
    """
    _check_given(given)
    kind, why = _kind(rows, given)
    options, pattern = tuple(given.get("options") or ()), given.get("pattern")
    if kind == "choice":
        options = options or tuple(sorted({row.answer for row in rows if not row.options}))
        if pattern is None and options and not any(row.options for row in rows):
            pattern = answer_pattern(options)
    metric = given.get("metric") or default_metric(kind)
    check_metric(metric, kind, f" ({why})")
    return {"kind": kind, "options": options, "pattern": pattern, "metric": metric}, why


def check_answer(row: Example, options: Sequence[str]) -> None:
    """TaskError unless the row's answer is one of the options."""
    if not options:
        raise TaskError("a choice needs options, on the row or on the task")
    if row.answer not in options:
        raise TaskError(f"answer {shorten(row.answer)!r} is not among the options {', '.join(map(shorten, options))}")


def check_pattern(pattern: object) -> None:
    """TaskError unless the pattern is None or a regular expression that compiles."""
    if pattern is None:
        return
    if not isinstance(pattern, str):
        raise TaskError(f"pattern must be a string, not {type(pattern).__name__}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise TaskError(f"pattern {pattern!r} is no regular expression: {error}") from None


def _check_given(given: Mapping[str, Any]) -> None:
    allowed = ("kind", "options", "pattern", "metric")
    for key in given:
        if key not in allowed:
            raise TaskError(f"unknown key {key!r}; allowed: {', '.join(allowed)}")
    for key, choices in (("kind", KINDS), ("metric", METRICS)):
        if given.get(key) is not None and given[key] not in choices:
            raise TaskError(f"{key} must be one of {', '.join(choices)}, not {given[key]!r}")
    options = given.get("options")
    if options is not None:
        check_options(check_texts(options, "options"))
    check_pattern(given.get("pattern"))
    if options and given.get("kind") == "text":
        raise TaskError('options belong to kind "choice", but kind is "text"')


def _kind(rows: Sequence[Example], given: Mapping[str, Any]) -> tuple[str, str]:
    if given.get("kind"):
        return given["kind"], "as given"
    if given.get("options"):
        return "choice", "options are given"
    if any(row.references for row in rows):
        return "text", "rows have references"
    if rows and all(row.options for row in rows):
        return "choice", "rows have options"
    answers = len({row.answer for row in rows})
    return ("choice" if 2 <= answers <= MOST_LABELS else "text"), f"{answers} distinct answers"


def default_metric(kind: str) -> str:
    """accuracy for a choice, bleu for free text."""
    return "accuracy" if kind == "choice" else "bleu"


def check_metric(metric: object, kind: str, why: str = "") -> None:
    """TaskError unless an evaluation of this kind gives the metric; `why` says how the kind was settled."""
    if metric not in METRICS_OF[kind]:
        allowed = ", ".join(METRICS_OF[kind])
        raise TaskError(f"metric must be one of {allowed} for kind {kind!r}{why}, not {metric!r}")


def shorten(text: str, limit: int = 60) -> str:
    """The text, cut to this many characters for a message."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
