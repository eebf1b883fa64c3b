"""Several methods beside each other: what each gains over the base and over JoLA, on the same rows.

    gain = NLL(base) − NLL(method)        difference = NLL(reference) − NLL(method)        nats per answer token

and of any other score the same with the sign that makes better positive. Both are taken row by row within a pair of
seed and data draw, and then averaged over the pairs.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from jaxtyping import Float

from jola_interp.analysis.ranking import acting_units
from jola_interp.analysis.summary import title_of
from jola_interp.edits.jola import JoLA
from jola_interp.evaluation import tables
from jola_interp.evaluation.compare import matched, side_measures
from jola_interp.evaluation.metrics import LOWER_IS_BETTER, Measure
from jola_interp.evaluation.paired import difference
from jola_interp.evidence.endpoint import paired
from jola_interp.models import Model, load_model
from jola_interp.runs import STAGES, Run, read_config

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "jola"
NLL = "nll"
Over = Literal["pairs", "rows"]
PairOf = tuple[int, int | None]
"""(seed of the training, seed of the data draw; None of rows at hand)."""
ROUNDING = 1e-9
SIZE, DRAW, LIKE = "k", "draw", "like"
"""Options that say how many heads, which draw of them, and how many in each layer."""
_HOST = ("host", "platform", "torch", "threads")
"""What has to be the same for two times to be compared."""


@dataclass(frozen=True)
class Contrast:
    """A mean difference of one score, better being positive, with its 95 % interval.

    Attributes:
        value, low, high: over pairs: mean of the pairs' values and Student's t interval of it. Over the rows of one
            pair: Student's t for scores that are means over rows, else the paired bootstrap. NaN where all pairs have
            the same value: few pairs and a coarse score may agree by chance, and tell nothing of their spread.
        p: of "there is no difference", two-sided.
        mde: the smallest true difference that would be found (p < .05) four times in five, given the spread that was
            seen; NaN of a bootstrap.
        over: whether the interval is over pairs or over rows. That over rows says nothing of another seed.
        n: how many pairs, or rows.
        by_pair: pair to its value.
    """

    value: float
    low: float
    high: float
    p: float
    mde: float
    over: Over
    n: int
    by_pair: Mapping[PairOf, float] = field(repr=False)


@dataclass(frozen=True)
class Standing:
    """One score of one method.

    Attributes:
        method: its name, with the options in which Runs of that name differ.
        score: ``nll``, or the task's metric.
        base, value: means over pairs of the score without and with the method.
        gain: over the base.
        difference: over the reference; None of the reference itself, and without a pair in common with it.
    """

    method: str
    score: str
    base: float
    value: float
    gain: Contrast
    difference: Contrast | None


@dataclass(frozen=True)
class MethodFacts:
    """What a method is and costs.

    Attributes:
        name: of the method, without options.
        options: that it was built with.
        pairs: (seed, data draw) of each Run.
        rows: test rows of each Run.
        parameters: numbers that train, mean over pairs.
        heads: heads that act at inference, mean over pairs; NaN where it acts elsewhere too, or nowhere.
        steps: optimiser steps, those of stages of its own included, mean over pairs.
        seconds_ratio: seconds per step of the last stage over the reference's, mean over the pairs in which both were
            trained on one host with as many threads; NaN without such a pair.
        peak_memory: bytes, the largest of its Runs; NaN where ``timing.json`` does not say.
    """

    name: str
    options: Mapping[str, Any]
    pairs: tuple[PairOf, ...]
    rows: tuple[int, ...]
    parameters: float
    heads: float
    steps: float
    seconds_ratio: float
    peak_memory: float


@dataclass(frozen=True, repr=False)
class MethodsTable:
    """What :func:`compare_methods` found.

    Attributes:
        title: model and task.
        reference: the method that ``difference`` is taken from.
        scores: ``nll`` and, where the Runs have another, the task's metric.
        methods: method to what it is and costs, in the order in which the Runs came.
        standings: one for each method and score.
        model_parameters: of the model itself; None where no model was given.
        notes: what a reader must know.
    """

    title: str
    reference: str
    scores: tuple[str, ...]
    methods: Mapping[str, MethodFacts]
    standings: tuple[Standing, ...]
    model_parameters: int | None = None
    notes: tuple[str, ...] = ()

    def standing(self, method: str, score: str = NLL) -> Standing:
        """One score of one method. Raises ValueError on another method or score."""
        for found in self.standings:
            if (found.method, found.score) == (method, score):
                return found
        raise ValueError(
            f"no {score!r} of {method!r}: methods are {', '.join(self.methods)}, scores {', '.join(self.scores)}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per method and score: method, score, pairs, n (rows of a pair), base, value, gain and difference each
        with _low, _high, _mde and _over ("4 pairs", "100 rows"), p (of the difference), parameters, share of the
        model's, heads, steps, seconds_ratio, peak_memory. What is not known is NaN, or an empty text."""
        import pandas as pd

        return pd.DataFrame([self._row(found) for found in self.standings])

    def _row(self, found: Standing) -> dict[str, Any]:
        facts = self.methods[found.method]
        row: dict[str, Any] = {"method": found.method, "score": found.score, "pairs": len(facts.pairs)}
        row |= {"n": min(facts.rows), "base": found.base, "value": found.value}
        row |= _columns("gain", found.gain) | _columns("difference", found.difference)
        row["p"] = found.difference.p if found.difference else math.nan
        share = facts.parameters / self.model_parameters if self.model_parameters else math.nan
        row |= {"parameters": facts.parameters, "share": share}
        return row | {name: getattr(facts, name) for name in ("heads", "steps", "seconds_ratio", "peak_memory")}

    def __repr__(self) -> str:
        return "\n".join([self._heading(), self._shown().to_string(index=False), *self.notes])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        table = self._shown().to_html(index=False, escape=True, border=0)
        return f"<div><p><b>{html.escape(self._heading())}</b></p>{table}{notes}</div>"

    def _heading(self) -> str:
        return f"{self.title}: gain over the base and difference to {self.reference}, 95 % intervals"

    def _shown(self) -> pd.DataFrame:
        frame = self.to_frame()
        kept = ["method", "score", "pairs", "value", "gain", "gain_over", "difference", "difference_over", "p"]
        bounds = [f"{name}{end}" for name in ("gain", "difference") for end in ("_low", "_high")]
        cells = tables.shown(frame[[*kept, *bounds]])
        cells["parameters"] = [f"{count:,.0f}" for count in frame["parameters"]]
        return cells.map(lambda cell: cell.replace(" [nan, nan]", ""))


@dataclass(frozen=True)
class HeadCurve:
    """Gain over the number of heads, of one way to choose them.

    Attributes:
        way: method, with the options in which its Runs differ beside how many heads and which draw.
        heads: [size] heads that act at inference, mean over its Runs, rising.
        gain: [size] over the base, mean over its Runs.
        low, high: [size] the least and the largest gain of one Run.
        runs: [size] how many Runs: pairs of seed and data draw, times draws of the method's own.
    """

    way: str
    heads: Float[np.ndarray, " size"]
    gain: Float[np.ndarray, " size"]
    low: Float[np.ndarray, " size"]
    high: Float[np.ndarray, " size"]
    runs: tuple[int, ...]


def head_curves(table: MethodsTable, score: str = NLL) -> tuple[HeadCurve, ...]:
    """What each way to choose heads gains with how many, of the methods that act on heads alone.

    Raises:
        ValueError: a score that the table does not have, or no such method.
    """
    if score not in table.scores:
        raise ValueError(f"score must be one of {', '.join(table.scores)}; got {score!r}")
    found: dict[str, dict[Any, list[Standing]]] = {}
    for standing in (one for one in table.standings if one.score == score):
        facts = table.methods[standing.method]
        if not math.isnan(facts.heads):
            size = facts.options.get(SIZE, facts.heads)
            found.setdefault(_way(standing.method), {}).setdefault(size, []).append(standing)
    if not found:
        raise ValueError(f"none of {', '.join(table.methods)} acts on heads alone and was scored by {score}")
    return tuple(_curve(table, way, list(sizes.values())) for way, sizes in found.items())


def _way(label: str) -> str:
    """A method's label without its number of heads and its draw."""
    name, *options = label.split(" ")
    return " ".join([name, *(option for option in options if option.partition("=")[0] not in (SIZE, DRAW))])


def _curve(table: MethodsTable, way: str, sizes: list[list[Standing]]) -> HeadCurve:
    rows = []
    for alike in sizes:
        gains = [value for standing in alike for value in standing.gain.by_pair.values()]
        size = _mean(table.methods[standing.method].heads for standing in alike)
        rows.append((size, _mean(gains), min(gains), max(gains), len(gains)))
    heads, gain, low, high, runs = zip(*sorted(rows), strict=True)
    return HeadCurve(way, np.array(heads), np.array(gain), np.array(low), np.array(high), tuple(runs))


def compare_methods(
    runs: Iterable[Run | str | Path], *, reference: str = REFERENCE, model: str | Path | Model | None = None
) -> MethodsTable:
    """What each method gains over the base model and over the reference, from finished and evaluated Runs.

    A Run belongs to a method (the one that it was trained by, or the type of its edit), and to a pair of seed and data
    draw. Within a pair, methods are compared on the same test rows. The base of a pair is that of its reference Run,
    since a method with a prompt of its own has another; without one, each Run's own.

    Args:
        runs: of one model and task, or their directories; one Run for a method and pair.
        reference: the method to take differences from.
        model: to state parameters as a share of the model's own; no pass is made.

    Raises:
        ValueError: no Run, one that is not finished or has no predictions, several models or tasks, two Runs of a
            method and pair, or Runs of a pair that were scored on other rows.
    """
    opened = [run if isinstance(run, Run) else Run.load(run) for run in runs]
    _require_alike(opened)
    by_method = _by_method(opened)
    sides = _sides(by_method, reference)
    scores = _scores_of(opened, sides)
    standings = [
        _standing(name, score, parts, sides.get(reference, {}), name == reference)
        for score in scores
        for name, parts in sides.items()
        if all(score in part.both for part in parts.values())
    ]
    total = None
    if model is not None:
        total = sum(parameter.numel() for parameter in load_model(model).hf.parameters())
    facts = {name: _facts(found, by_method.get(reference, {})) for name, found in by_method.items()}
    return MethodsTable(
        title=title_of(opened[0]),
        reference=reference,
        scores=scores,
        methods=facts,
        standings=tuple(standings),
        model_parameters=total,
        notes=(*_how(standings, reference), *_warnings(by_method, standings, scores, reference)),
    )


def pair_of(run: Run) -> PairOf:
    """(seed of the training, seed of the data draw)."""
    return run.config["train"]["seed"], run.config["task"]["seed"]


# -- which Run is what ---------------------------------------------------------------------------------------------


def _require_alike(runs: Sequence[Run]) -> None:
    if not runs:
        raise ValueError("runs is empty: there is nothing to compare")
    for run in runs:
        if run.status != "finished":
            raise ValueError(f"{run.path} is {run.status}: only finished Runs can be compared")
        if not run.predictions:
            raise ValueError(f"{run.path} has no predictions: ji.evaluate(run, task) makes them")
    for what, read in (("models", _model_of), ("tasks", lambda run: run.config["task"]["name"])):
        found = dict.fromkeys(str(read(run)) for run in runs)
        if len(found) > 1:
            raise ValueError(f"the Runs are of several {what}: {', '.join(found)}; make a table of each")


def _model_of(run: Run) -> str:
    recorded = run.config["model"]
    return f"{recorded['name']} ({recorded['fingerprint'][:12]}, {recorded['dtype']})"


def _by_method(runs: Sequence[Run]) -> dict[str, dict[PairOf, Run]]:
    """Method to its Runs by pair, in the order in which they came."""
    found: dict[str, dict[PairOf, Run]] = {}
    for label, run in zip(_labels(runs), runs, strict=True):
        mine, pair = found.setdefault(label, {}), pair_of(run)
        if pair in mine:
            raise ValueError(f"two Runs of {label!r}, seed {pair[0]}, data {pair[1]}: {mine[pair].path}, {run.path}")
        mine[pair] = run
    return found


def _labels(runs: Sequence[Run]) -> list[str]:
    """Each Run's method, with the options in which Runs of that name differ: "lofit k=64"."""
    known = [(name, _told(options)) for name, options in map(_method_of, runs)]
    labels = []
    for name, options in known:
        others = [given for other, given in known if other == name]
        differ = [key for key, value in options.items() if any(given.get(key, value) != value for given in others)]
        labels.append(" ".join([name, *(f"{key}={options[key]}" for key in differ)]))
    return labels


def _told(options: Mapping[str, Any]) -> dict[str, Any]:
    """Counts per layer are those of another Run, and not the same in every pair: that they are given is the method."""
    return {key: "layers" if key == LIKE and value is not None else value for key, value in options.items()}


def _method_of(run: Run) -> tuple[str, dict[str, Any]]:
    record = run.config["method"]
    return (run.edit.type_name, {}) if record is None else (record["name"], dict(record["options"]))


# -- scores --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sides:
    """Scores of one Run's rows, and of the base that it is held against on the same rows."""

    base: Mapping[str, Measure]
    edited: Mapping[str, Measure]

    @property
    def both(self) -> set[str]:
        """The scores that both have."""
        return self.base.keys() & self.edited.keys()


def _sides(by_method: Mapping[str, Mapping[PairOf, Run]], reference: str) -> dict[str, dict[PairOf, _Sides]]:
    """Method and pair to its scores beside those of the base; that of a reference Run is scored once."""
    theirs = by_method.get(reference, {})
    bases: dict[Path, Mapping[str, Measure]] = {}
    found: dict[str, dict[PairOf, _Sides]] = {}
    for name, runs in by_method.items():
        for pair, run in runs.items():
            held = theirs.get(pair, run)
            ours, rows, _ = matched(held.predictions, run.predictions)
            if held.path not in bases:
                bases[held.path] = side_measures(ours, "base")
            found.setdefault(name, {})[pair] = _Sides(bases[held.path], side_measures(rows, "edited"))
    return found


def _scores_of(runs: Sequence[Run], sides: Mapping[str, Mapping[PairOf, _Sides]]) -> tuple[str, ...]:
    """``nll`` and the metric by which most Runs were scored, as far as any method has them."""
    named = Counter(str(run.scores.get("metric", NLL)) for run in runs)
    wanted = dict.fromkeys([NLL, named.most_common(1)[0][0]])
    have = [set.intersection(*(part.both for part in parts.values())) for parts in sides.values()]
    found = tuple(score for score in wanted if any(score in scores for scores in have))
    if not found:
        raise ValueError(f"no method was scored by {' or '.join(wanted)} in all its pairs: evaluate the Runs alike")
    return found


def _standing(
    method: str,
    score: str,
    parts: Mapping[PairOf, _Sides],
    reference: Mapping[PairOf, _Sides],
    is_reference: bool,
) -> Standing:
    gains = {pair: (part.base[score], part.edited[score]) for pair, part in parts.items()}
    shared = [] if is_reference else [pair for pair in parts if pair in reference and score in reference[pair].edited]
    held = {pair: (reference[pair].edited[score], parts[pair].edited[score]) for pair in shared}
    return Standing(
        method,
        score,
        base=_mean(_value(base) for base, _ in gains.values()),
        value=_mean(_value(edited) for _, edited in gains.values()),
        gain=_contrast(gains),
        difference=_contrast(held) if held else None,
    )


def _contrast(found: Mapping[PairOf, tuple[Measure, Measure]]) -> Contrast:
    """How much better the second of each pair is: over pairs, or over the rows of a single one."""
    name = next(iter(found.values()))[0].name
    sign = -1.0 if name in LOWER_IS_BETTER else 1.0
    by_pair = {pair: sign * (_value(second) - _value(first)) for pair, (first, second) in found.items()}
    if len(found) > 1:
        seen = paired(np.array(list(by_pair.values())))
        known = (seen.low, seen.high, seen.p, seen.mde) if _differ(by_pair.values()) else (math.nan,) * 4
        return Contrast(seen.value, *known, "pairs", seen.n, by_pair)
    [(first, second)] = found.values()
    if _is_mean(first) and len(first.rows) > 1:
        seen = paired(sign * (second.value(second.rows) - first.value(first.rows)))
        return Contrast(seen.value, seen.low, seen.high, seen.p, seen.mde, "rows", seen.n, by_pair)
    drawn = difference(first, second)
    ends = sorted((sign * drawn.low, sign * drawn.high))
    return Contrast(sign * drawn.value, ends[0], ends[1], drawn.p, math.nan, "rows", drawn.n, by_pair)


def _differ(values: Iterable[float]) -> bool:
    """Whether numbers differ by more than rounding."""
    known = np.array(list(values))
    return bool(np.ptp(known) > ROUNDING * (1 + np.abs(known).max()))


def _is_mean(measure: Measure) -> bool:
    """Whether the score is the mean over rows of what each row scores alone, which BLEU is not."""
    return measure.rows.shape[1] == 2 and bool((measure.rows[:, 1] == 1).all())


def _value(measure: Measure) -> float:
    return float(measure.value(measure.rows.sum(0)))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


# -- facts ---------------------------------------------------------------------------------------------------------


def _facts(runs: Mapping[PairOf, Run], reference: Mapping[PairOf, Run]) -> MethodFacts:
    first = next(iter(runs.values()))
    name, options = _method_of(first)
    ratios = [_seconds_ratio(run, reference[pair]) for pair, run in runs.items() if pair in reference]
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    peaks = [_peak(run) for run in runs.values()]
    return MethodFacts(
        name=name,
        options=options,
        pairs=tuple(runs),
        rows=tuple(len(run.predictions) for run in runs.values()),
        parameters=_mean(run.edit.n_parameters() for run in runs.values()),
        heads=_mean(_heads(run) for run in runs.values()),
        steps=_mean(_steps(run) for run in runs.values()),
        seconds_ratio=_mean(known) if known else math.nan,
        peak_memory=max(peaks) if not any(map(math.isnan, peaks)) else math.nan,
    )


def _peak(run: Run) -> float:
    """NaN where it was not measured."""
    found = run.timing.get("peak_memory_bytes")
    return math.nan if found is None else float(found)


def _heads(run: Run) -> float:
    """How many heads act at inference; NaN where the edit acts elsewhere too, or nowhere."""
    edit: Any = run.edit
    masks = edit.masks()
    if list(masks) != ["heads"]:
        return math.nan
    if type(edit) is JoLA:
        return float(len(acting_units(edit)))
    chosen = _method_of(run)[1].get(SIZE)
    return float(chosen if isinstance(chosen, int) else masks["heads"].sum())


def _steps(run: Run) -> int:
    """Optimiser steps of a Run and of the trainings that its method made first."""
    stages = (read_config(file) for file in sorted((run.path / STAGES).glob("*/config.json")))
    return sum(int(config["progress"]["steps"]) for config in (run.config, *stages))


def _seconds_ratio(run: Run, reference: Run) -> float:
    """Seconds per step over the reference's; NaN unless both took steps on one host with as many threads."""
    alike = all(run.timing.get(key) == reference.timing.get(key) is not None for key in _HOST)
    ours, theirs = _seconds_per_step(run), _seconds_per_step(reference)
    return ours / theirs if alike and theirs else math.nan


def _seconds_per_step(run: Run) -> float:
    """``train_seconds`` holds those of the last session alone, and ``steps`` how many it made."""
    timing = run.timing
    steps = timing.get("steps", run.config["progress"]["steps"])
    seconds = timing.get("train_seconds")
    return float(seconds) / steps if seconds is not None and steps else math.nan


# -- words ---------------------------------------------------------------------------------------------------------


def _how(standings: Sequence[Standing], reference: str) -> list[str]:
    """What the numbers are, and what the intervals are over."""
    told = [f"Gain over the base and difference to {reference}, paired on the same rows; better is positive."]
    contrasts = [one for found in standings for one in (found.gain, found.difference) if one is not None]
    overs = {one.over for one in contrasts}
    if "pairs" in overs:
        told.append("Intervals over pairs (seed and data draw): Student's t of the pairs' means.")
        if any(one.over == "pairs" and math.isnan(one.low) for one in contrasts):
            told.append("No interval where all pairs have the same value.")
    if "rows" in overs:
        told.append("Intervals over the rows of one pair say nothing of another seed or draw.")
    if len({found.method for found in standings}) > 2:
        told.append("Each p is of its method alone: many methods, many chances.")
    return told


def _warnings(
    by_method: Mapping[str, Mapping[PairOf, Run]], standings: Sequence[Standing], scores: Sequence[str], reference: str
) -> list[str]:
    """Methods that were not compared in the same way as the others."""
    there = {(found.method, found.score) for found in standings}
    told = [f"{name}: no {score}." for score in scores for name in by_method if (name, score) not in there]
    if reference not in by_method:
        told.append(f"No Run of {reference}: no differences, and each Run's own base.")
    theirs = by_method.get(reference, {})
    for name, runs in by_method.items():
        if theirs and (missing := [pair for pair in theirs if pair not in runs]):
            told.append(f"{name}: {len(missing)} of {len(theirs)} pairs missing.")
        if theirs and (more := [pair for pair in runs if pair not in theirs]):
            told.append(f"{name}: no {reference} in {len(more)} of its pairs, whose gain is over the Run's own base.")
        told += _other_prompts(name, runs, theirs)
        told += _other_rows(name, runs, theirs)
    return told


def _other_prompts(name: str, runs: Mapping[PairOf, Run], reference: Mapping[PairOf, Run]) -> list[str]:
    pairs = [pair for pair in runs if pair in reference]
    other = any(_protocol(runs[pair], "wrapper") != _protocol(reference[pair], "wrapper") for pair in pairs)
    return [f"{name}: scored with a prompt of its own."] if other else []


def _other_rows(name: str, runs: Mapping[PairOf, Run], reference: Mapping[PairOf, Run]) -> list[str]:
    pairs = [pair for pair in runs if pair in reference]
    ours, theirs = ([one[pair].config["task"]["fingerprint"] for pair in pairs] for one in (runs, reference))
    return [f"{name}: its training or validation rows are others under the same seeds."] if ours != theirs else []


def _protocol(run: Run, field_name: str) -> Any:
    return cast(dict[str, Any], run.scores.get("protocol", {})).get(field_name, run.config["train"][field_name])


def _columns(name: str, found: Contrast | None) -> dict[str, Any]:
    columns = {name: "value", f"{name}_low": "low", f"{name}_high": "high", f"{name}_mde": "mde"}
    told = "" if found is None else f"{found.n} {found.over}"
    return {column: getattr(found, key, math.nan) for column, key in columns.items()} | {f"{name}_over": told}
